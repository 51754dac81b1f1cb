# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import PIL.Image
import pytest

from trl_focus.evaluation.benchmark import Item, Subject
from trl_focus.evaluation.instances import NEUTRAL, Instance, asked_boxes, cut_out, mask_box, usable


IMAGE = PIL.Image.new("RGB", (40, 20), "blue")


def item(*boxes) -> Item:
    return Item(0, "a", (), tuple(Subject(str(i), (), box=box) for i, box in enumerate(boxes)))


def mask(*box: int) -> np.ndarray:
    values = np.zeros((20, 40), np.float32)
    values[box[1] : box[3], box[0] : box[2]] = 1
    return values


def test_boxes_that_are_asked_for():
    assert asked_boxes(IMAGE, item(None, None)) is None
    found = asked_boxes(IMAGE, item((0, 0.25, 0.5, 1), (0.5, 0, 1, 1)))
    assert found == [Instance((0, 5, 20, 20), subject=0), Instance((20, 0, 40, 20), subject=1)]


def test_a_subject_that_is_asked_for_anywhere_is_not_lost():
    assert asked_boxes(IMAGE, item((0, 0.25, 0.5, 1), None)) is None


def test_boxes_between_pixels():
    """As detectors give them: what is cut out has all pixels that they touch."""
    kept, _ = usable([Instance((0.4, 3.0, 31.7, 15.2))], IMAGE, item(None))
    assert kept[0].box == (0, 3, 32, 16) and cut_out(IMAGE, kept[0].box).size == (32, 32)


@pytest.mark.parametrize("subject", [-1, 2])
def test_subject_that_nobody_asked_for(subject):
    with pytest.raises(ValueError, match=f"instance 0 stands for subject {subject}, and there are 2, from 0"):
        usable([Instance((0, 0, 9, 9), subject=subject)], IMAGE, item(None, None))


def test_box_of_a_mask():
    assert mask_box(mask(3, 4, 10, 9)) == (3, 4, 10, 9)
    assert mask_box(mask(0, 0, 40, 20)) == (0, 0, 40, 20)
    assert mask_box(0.4 * mask(3, 4, 10, 9)) == (0, 0, 0, 0)


def test_cut_out_stands_in_a_square():
    found = np.asarray(cut_out(IMAGE, (10, 5, 30, 15)))
    assert found.shape == (20, 20, 3)
    assert (found[5:15] == (0, 0, 255)).all()
    assert (found[:5] == NEUTRAL).all() and (found[15:] == NEUTRAL).all()


def test_cut_out_leaves_what_the_mask_leaves():
    values = mask(12, 5, 20, 15)
    values[5, 12] = 0.5
    found = np.asarray(cut_out(IMAGE, (10, 5, 20, 15), values))
    assert found.shape == (10, 10, 3)
    assert (found[:, :2] == NEUTRAL).all() and (found[1:, 2:] == (0, 0, 255)).all()
    assert found[0, 2].tolist() == [64, 64, 192]


def test_good_ones():
    instances = [Instance((0, 0, 10, 20)), Instance((20, 0, 30, 20))]
    assert usable(instances, IMAGE, item(None, None)) == (instances, [])


def test_boxes_that_lead_out_are_cut():
    (kept,), remarks = usable([Instance((-5, -5, 10, 50))], IMAGE, item(None))
    assert kept.box == (0, 0, 10, 20) and remarks == []


@pytest.mark.parametrize(
    "empty", [Instance((5, 5, 5, 10)), Instance((50, 0, 60, 10)), Instance((0, 0, 10, 10), mask(20, 0, 30, 10))]
)
def test_empty_ones(empty):
    kept, remarks = usable([Instance((0, 0, 10, 20)), empty], IMAGE, item(None))
    assert len(kept) == 1 and remarks == ["instance 1 is empty, and left out"]


@pytest.mark.parametrize(
    "number, remark",
    [
        (0, "no subject found, and 2 asked for"),
        (1, "1 instance found, and 2 asked"),
        (3, "3 instances found, and 2 asked"),
    ],
)
def test_more_or_fewer(number, remark):
    _, (said,) = usable([Instance((0, 0, 10, 20))] * number, IMAGE, item(None, None))
    assert remark in said


def test_masks_that_overlap():
    def pair(right):
        boxes = (0, 0, 20, 20), (20 - right, 0, 40, 20)
        return usable([Instance(box, mask(*box)) for box in boxes], IMAGE, item(None, None))[1]

    assert pair(0) == [] == pair(2)
    assert pair(4) == ["the masks of instances 0 and 1 overlap"]


def test_what_can_not_be():
    with pytest.raises(ValueError, match="mask of instance 0 has 3x2 pixels and the image 40x20"):
        usable([Instance((0, 0, 1, 1), np.ones((2, 3)))], IMAGE, item(None))
    for subjects in ((0, None), (1, 1)):
        with pytest.raises(ValueError, match="which subject they stand for"):
            usable([Instance((0, 0, 9, 9), subject=subject) for subject in subjects], IMAGE, item(None, None))
