# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from argparse import ArgumentParser

import datasets
import numpy as np
import PIL.Image
import pytest

from tests.fixtures.pairs import make_pairs
from tests.fixtures.seeing import save_detector, save_matcher, save_segmenter
from trl_focus.cli import main
from trl_focus.cli.masks import add_parser
from trl_focus.data import load_preferences
from trl_focus.masks import MaskSettings
from trl_focus.masks.segment import Outline


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [
        *("--detector", save_detector(folder / "detector")),
        *("--segmenter", save_segmenter(folder / "segmenter")),
        *("--matcher", save_matcher(folder / "matcher")),
    ]


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """Pairs without masks in a folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    dataset = make_pairs(3, n_references=[1, 2, 1], masks=False)
    dataset.save_to_disk(tmp_path / "pairs")
    yield str(tmp_path / "pairs")
    datasets.enable_progress_bars()


def whole(images, boxes, segmenter, batch_size):
    """A SAM for which everything fills its image."""
    return [
        [Outline(np.ones(image.size[::-1], bool), 0.9) for _ in asked]
        for image, asked in zip(images, boxes, strict=True)
    ]


def test_masks_are_written(pairs, models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trl_focus.masks.judge.segment", whole)
    arguments = ["masks", pairs, str(tmp_path / "out"), "--by", "reference", "--confidence", "0", *models]
    monkeypatch.setattr("trl_focus.masks.boxes.SHARED", -1)  # the first place is all places
    assert main([*arguments, "--rows", "2"]) == 0
    out = capsys.readouterr().out
    assert "1 rows with masks, 1 set aside." in out
    assert "row 1: `chosen`: the masks of 'thing 0' and 'thing 1' overlap by 100% of the smaller" in out
    kept, aside = (load_preferences(str(tmp_path / "out"), split=split) for split in ("train", "aside"))
    assert kept["row"][:] == [0] and aside["row"][:] == [1] and aside["problems"][0]
    assert kept[0]["chosen_masks"][0].getextrema() == (255, 255)
    assert main(["validate", str(tmp_path / "out")]) == 0
    for split in ("train", "aside"):
        assert PIL.Image.open(tmp_path / "out" / "sheets" / f"{split}-00.png").width > 3 * 192


def test_nothing_is_left(pairs, models, tmp_path, capsys):
    """The detector finds something everywhere."""
    assert main(["masks", pairs, str(tmp_path / "out"), *models]) == 2
    out = capsys.readouterr().out
    assert "16 places may show 'thing 0'" in out and "row 2: " in out
    assert "0 rows with masks, 3 set aside.\nNo row is left to train on.\n" in out
    assert len(load_preferences(str(tmp_path / "out"), split="aside")) == 3


def test_refusals(pairs, models, tmp_path, capsys):
    def error_of(*arguments):
        assert main(["masks", pairs, *arguments]) == 2
        return capsys.readouterr().err

    out = str(tmp_path / "out")
    assert "is there already" in error_of(str(tmp_path))
    assert "`confidence` is 3.0: it lies between 0 and 1" in error_of(out, "--confidence", "3")
    assert "no split 'test'" in error_of(out, "--split", "test")
    assert error_of(out, *models, "--detector", str(tmp_path / "nowhere")).startswith("error: ")
    make_pairs(1).remove_columns("subjects").save_to_disk(tmp_path / "nameless")
    assert main(["masks", str(tmp_path / "nameless"), out]) == 2
    assert "no column `subjects`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_names_the_defaults():
    text = "".join(add_parser(ArgumentParser().add_subparsers()).format_help().split())  # lines break at hyphens
    settings = MaskSettings()
    for value in (settings.detector, settings.segmenter, settings.matcher, settings.missing, f"{settings.overlap:g}"):
        assert f"(default:{value})" in text
    assert f"{settings.confidence:g}byname,{MaskSettings(by='reference').confidence:g}byreference" in text
