# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json
import subprocess
import sys

import pytest

from tests.fixtures.families import family_of
from tests.fixtures.pipelines import TINY
from trl_focus.families import FAMILIES
from trl_focus.families.__main__ import families, main
from trl_focus.families.table import TABLE, families_text
from trl_focus.noise import RectifiedFlow


def row_of(pipeline):
    (row,) = (row for row in families() if pipeline in row["pipelines"])
    return row


def test_names_each_pipeline_of_the_registry_once():
    assert sorted(name for row in families() for name in row["pipelines"]) == sorted(FAMILIES)


@pytest.mark.parametrize("name", TINY)
def test_says_what_the_family_of_a_pipeline_is(name):
    family = family_of(name)
    row = row_of(type(family.pipeline).__name__)
    assert row["family"] == type(family).__name__
    assert (row["prediction_type"] == "flow") == isinstance(family.process, RectifiedFlow)
    assert row["lora_target_modules"] == family.lora_target_modules
    assert row["reference_positions"] or tuple(row["references"]) == family.reference_counts
    for block in family.feature_blocks:
        assert block.rsplit(".", 1)[0] in row["blocks"]


def test_families_from_outside_are_listed_too(monkeypatch):
    class Mine(type(family_of("sd15"))):
        reference_counts = (1, 3)

    monkeypatch.setitem(FAMILIES, "MyPipeline", Mine)
    assert row_of("MyPipeline")["references"] == [1, 3]
    assert "1 to 3" in families_text(families())


def test_columns_are_aligned():
    lines = families_text(families()).splitlines()
    titles = ["family", "pipelines", "references", "predicts", "default LoRA targets", "block tapped"]
    starts = [lines[0].index(title) for title in titles]
    assert starts == sorted(starts) and starts[0] == 0
    for line in lines[1:]:
        assert all(line[start - 1 : start] in ("", " ") for start in starts[1:])
    text = " ".join(families_text(families()).split())
    assert "ZImageOmni" in text and "none, or N with" in text and "0 to N" in text and "epsilon or v" in text


def test_json(capsys):
    main(["--json"])
    assert json.loads(capsys.readouterr().out) == families()


def test_command():
    command = [sys.executable, "-m", "trl_focus.families"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.rstrip("\n") == families_text(families())


def test_what_is_kept_is_what_the_registry_says():
    assert json.loads(TABLE.read_text()) == families(), (
        "write it anew: `python -m trl_focus.families --json > trl_focus/families/table.json`"
    )
