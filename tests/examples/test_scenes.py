# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import pytest
from PIL import Image, ImageFilter


pytest.importorskip("skimage")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from examples import pictures
from examples.photographs import scenes  # noqa: E402


SIZE = (96, 128)


@pytest.fixture(scope="module")
def pairs():
    return scenes.make_pairs(16, size=SIZE, seed=3)


def inside(mask):
    return np.asarray(mask) > 127


def pixels(dataset):
    images = ("chosen", "rejected"), ("references", "reference_masks", "chosen_masks", "rejected_masks")
    for row in dataset:
        yield from (np.asarray(row[name]) for name in images[0])
        yield from (np.asarray(image) for name in images[1] for image in row[name])


@pytest.mark.parametrize("name", scenes.SUBJECTS)
def test_subject_is_cut_tightly(name):
    look, mask = scenes.subject(name)
    assert look.mode == "RGB" and mask.mode == "L" and look.size == mask.size
    assert 12 <= len(scenes.OUTLINES[name]["polygon"]) <= 40
    left, top, right, bottom = mask.getbbox()
    assert max(left, top, look.width - right, look.height - bottom) <= 2


def test_seed_decides(pairs):
    again, other = scenes.make_pairs(8, size=SIZE, seed=3), scenes.make_pairs(8, size=SIZE, seed=4)
    assert again["prompt"] == pairs["prompt"][:8]
    assert all(map(np.array_equal, pixels(again), pixels(pairs.select(range(8)))))
    assert not all(map(np.array_equal, pixels(again), pixels(other)))


def test_sizes(pairs):
    for row in pairs:
        assert row["chosen"].size == row["rejected"].size == SIZE[::-1]
        assert all(mask.size == row["chosen"].size for mask in row["chosen_masks"] + row["rejected_masks"])
        assert [image.size for image in row["references"]] == [mask.size for mask in row["reference_masks"]]
        assert all(min(image.size) >= 64 for image in row["references"])
        assert all(inside(mask).mean() > 0.1 for mask in row["reference_masks"])
    with pytest.raises(ValueError, match="multiples of 16"):
        scenes.make_pairs(1, size=(100, 128))


def test_prompt_names_subjects_and_is_short(pairs):
    for row in pairs:
        assert all(scenes.OUTLINES[name]["phrase"] in row["prompt"] for name in row["subjects"])
    phrases = sorted((len(outline["phrase"]) for outline in scenes.OUTLINES.values()), reverse=True)
    longest = sum(phrases[:2]) + len(" and  on a  background") + max(map(len, scenes.GROUNDS))
    assert longest <= 62  # what the tiny pipeline's tokenizer holds


def test_chosen_masks_are_visible_and_disjoint(pairs):
    for row in pairs:
        first, second = map(inside, row["chosen_masks"])
        assert min(first.mean(), second.mean()) > 0.05
        assert not (first & second).any()


def test_damage(pairs):
    assert set(pairs["damage"]) == set(scenes.DAMAGES)
    for row in pairs:
        hit = row["subjects"].index(row["damaged"])
        difference = np.abs(np.asarray(row["chosen"], float) - np.asarray(row["rejected"], float)).max(axis=-1)
        before, after = row["chosen_masks"][hit], row["rejected_masks"][hit]
        assert difference[inside(before)].mean() > 10
        if row["damage"] in ("recolour", "texture"):
            feathered = before.filter(ImageFilter.MaxFilter(7))
            assert difference[~inside(feathered)].max() == 0
            assert row["chosen_masks"] == row["rejected_masks"]
        elif row["damage"] == "swap":
            assert not inside(after).any()
        else:
            assert 0 < inside(after).sum() < 0.7 * inside(before).sum()
        assert inside(row["rejected_masks"][1 - hit]).any()


def drawn(path):
    assert path.stat().st_size < 1_000_000
    return np.asarray(Image.open(path).convert("RGB")).std() > 0


def test_pictures(pairs, tmp_path):
    pictures.draw_pairs(pairs, tmp_path / "new folder" / "pairs.png")
    assert drawn(tmp_path / "new folder" / "pairs.png")

    few = pairs.select(range(2))
    pictures.draw_samples(
        few["rejected"][:], few["chosen"][:], few["prompt"][:], few["references"][:], tmp_path / "samples.png"
    )
    assert drawn(tmp_path / "samples.png")
    pictures.draw_samples(few["rejected"][:], few["chosen"][:], few["prompt"][:], [[], []], tmp_path / "plain.png")
    assert drawn(tmp_path / "plain.png")


@pytest.mark.parametrize("keys", [(), ("loss",), ("loss", "rewards/accuracies", "rewards/margins", "eval_loss")])
def test_training_curves(keys, tmp_path):
    history = [{"step": step, **dict.fromkeys(keys, 1 / step)} for step in range(1, 30)] + [
        {"step": 29, "train_loss": 1}
    ]
    pictures.draw_training(history, tmp_path / "training.png")
    assert drawn(tmp_path / "training.png")


def test_summary_table():
    table = pictures.summary_table([("pairs", "16"), ("accuracy", "0.5 → 0.8")], "quickstart")
    assert table.row_count == 2 and table.title == "quickstart"
