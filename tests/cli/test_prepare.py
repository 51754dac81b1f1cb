# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""`trl-focus prepare`, and pairs that were encoded elsewhere."""

import json

import datasets
import pytest
import yaml

from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES, PROMPT_KWARGS
from tests.hub.conftest import hub  # noqa: F401
from trl_focus.cli import main
from trl_focus.trainer import encoding, precomputed


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "here")
    PIPELINES["flux2_klein"]().save_pretrained(tmp_path / "base")
    make_pairs(4, n_references=1).save_to_disk(tmp_path / "pairs")
    file = tmp_path / "run.yaml"
    settings = {
        "model_name_or_path": str(tmp_path / "base"),
        "dataset_name": str(tmp_path / "pairs"),
        "output_dir": str(tmp_path / "out"),
        "resolution": 64,
        "encode_prompt_kwargs": json.loads(json.dumps(PROMPT_KWARGS["flux2_klein"])),
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "precompute_ref_errors": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    file.write_text(yaml.safe_dump(settings))
    return str(file)


def test_what_was_prepared_elsewhere_is_not_encoded_again(hub, config, tmp_path, monkeypatch, capsys):  # noqa: F811
    run = ["focus", "--config", config, "--subject_gate", "shown"]
    assert main(["prepare", "--push_to", "alice/encoded", "--private", *run]) == 0
    assert "train: 4 pairs" in capsys.readouterr().out
    assert hub.repos["datasets", "alice/encoded"].private
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "there")
    monkeypatch.setattr(encoding, "encode_row", None)
    monkeypatch.setattr(precomputed, "pack", None)
    assert main(["train", *run, "--prepared", "alice/encoded"]) == 0
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "there" / "trl-focus").rglob("*.arrow"))
    assert names == ["errors", "pairs", "prompts", "shown"]


def test_a_dataset_that_is_not_there(hub, config, capsys):  # noqa: F811
    assert main(["train", "dpo", "--config", config, "--prepared", "alice/nothing"]) == 2
    assert "no such dataset" in capsys.readouterr().err


def test_refuses_what_leaves_nothing_to_prepare(config, capsys):
    assert main(["prepare", "dpo", "--config", config, "--encode_once", "false", "--precompute_ref_errors", "0"]) == 2
    assert "nothing to prepare" in capsys.readouterr().err
    assert main(["prepare", "dpo", "--config", config, "--num_processes", "2"]) == 2
    assert "one process" in capsys.readouterr().err
