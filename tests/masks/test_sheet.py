# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import PIL.Image
import PIL.ImageColor
import pytest
from datasets import Dataset, Features, List, Value

from trl_focus.data import FEATURES
from trl_focus.focus.drawing import SUBJECTS, TINT
from trl_focus.masks.annotate import MADE
from trl_focus.masks.sheet import draw_masks, write_sheets


WHITE = PIL.Image.new("RGB", (96, 96), "white")


def half(left):
    mask = PIL.Image.new("L", WHITE.size)
    mask.paste(255, (0, 0, 48, 96) if left else (48, 0, 96, 96))
    return mask


def row(**columns):
    masked = {
        "chosen_masks": [half(True), None],
        "rejected_masks": [half(True), half(False)],
        "reference_masks": [half(True)],
    }
    scores = {"chosen_confidences": [0.8, 0.0], "rejected_confidences": None, "reference_confidences": [0.4]}
    given = {"prompt": "two", "chosen": WHITE, "rejected": WHITE, "references": [WHITE], "subjects": ["cat", "dog"]}
    return {**given, "reference_subjects": [1], **masked, **scores, "row": 5, "problems": [], **columns}


def tint(number):
    colour = PIL.ImageColor.getrgb(SUBJECTS[number])
    return pytest.approx([(1 - TINT) * 255 + TINT * channel for channel in colour], abs=1.5)


def test_a_subject_has_one_colour_everywhere():
    chosen, rejected, reference = draw_masks(row())
    assert chosen.getpixel((24, 80)) == tint(0) and chosen.getpixel((72, 80)) == (255, 255, 255)
    assert rejected.getpixel((24, 80)) == tint(0) and rejected.getpixel((72, 80)) == tint(1)
    assert reference.getpixel((24, 80)) == tint(1)  # it shows the second subject
    assert rejected.getpixel((47, 80)) == PIL.ImageColor.getrgb(SUBJECTS[0])  # the edge


def test_rows_that_can_not_be_drawn_are_no_reason_to_stop():
    broken = {"bytes": b"no image", "path": None}
    drawn = draw_masks(row(chosen=broken, chosen_masks=None, chosen_confidences=None))
    assert (
        len(drawn) == 3 and drawn[0].getpixel((0, 0)) == (211, 211, 211) and drawn[1].getpixel((24, 80)) == (255,) * 3
    )


def test_the_least_sure_come_first(tmp_path):
    features = Features({**FEATURES, **MADE, "reference_subjects": List(Value("int64")), "row": Value("int64")})
    rows = [row(row=i, chosen_confidences=[0.3 + i / 10, 0.9]) for i in range(3)]
    rows += [
        row(row=3, chosen_confidences=[0.01, 0.9], chosen=PIL.Image.new("RGB", (96, 96), "black"), chosen_masks=None)
    ]
    dataset = Dataset.from_list(rows, features=features)
    assert write_sheets(dataset, tmp_path / "sheets", "train", most=2) == 2
    page = PIL.Image.open(tmp_path / "sheets" / "train-00.png")
    assert page.getpixel((104, 200)) == (0, 0, 0)
    assert write_sheets(dataset, tmp_path / "sheets", "all") == 4
    assert not (tmp_path / "sheets" / "all-01.png").exists()
