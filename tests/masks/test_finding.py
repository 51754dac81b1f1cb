# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Subjects of an evaluation's images. SAM fills its boxes and the detector knows colours, so that every answer is known."""

import numpy as np
import PIL.Image
import pytest

from tests.masks.test_annotate import BOTH, LEFT, RIGHT, TOP, by_colour, fill, scene
from trl_focus.evaluation import Item, Subject
from trl_focus.evaluation.instances import usable
from trl_focus.masks import MaskSettings, subject_finder
from trl_focus.pairs import weighted_judge


@pytest.fixture
def loaded(monkeypatch):
    """Replaces the models; those that were loaded, by their kind."""
    kinds = {}
    monkeypatch.setattr("trl_focus.masks.finding.load", kinds.__setitem__)
    monkeypatch.setattr("trl_focus.masks.finding.detect", lambda *args: by_colour(*args, batch_size=8))
    monkeypatch.setattr("trl_focus.masks.judge.segment", fill)
    return kinds


def item_of(*names, masks=()):
    images = tuple(scene((name, TOP)) for name in ("cat", "dog"))
    subjects = tuple(Subject(name, (image,), masks) for name, image in zip(names, images, strict=True))
    return Item(7, "a cat and a dog", images, subjects)


def judgement(image, settings=None):
    find = subject_finder(settings or MaskSettings())
    return weighted_judge([lambda *args: {"taste": 1.0}], {"taste": 1.0}, find)(image, item_of("cat", "dog"))


def test_by_name(loaded):
    find = subject_finder(MaskSettings(detector="owl", segmenter="sam"))
    assert loaded == {"detector": "owl", "segmenter": "sam"}
    image = scene(*BOTH)
    instances = find(image, item_of("dog", "cat"))
    assert [(each.box, each.subject, each.doubt) for each in instances] == [(RIGHT, 0, None), (LEFT, 1, None)]
    for instance in instances:
        left, top, right, bottom = instance.box
        assert instance.mask.shape == (48, 64) and instance.mask[top:bottom, left:right].all()
        assert instance.mask.sum() == (bottom - top) * (right - left)


def test_doubts_are_told_and_cost_the_masks(loaded):
    find = subject_finder(MaskSettings())
    image = scene(*BOTH, ("dog", TOP))
    instances = find(image, item_of("cat", "dog"))
    assert [each.subject for each in instances] == [0, 1]
    doubt = "2 places may show 'dog' (confidence 0.70, 0.70), and one is searched"
    assert usable(instances, image, item_of("cat", "dog")) == (instances, [doubt])
    assert judgement(image).masks is None
    assert all(mask.any() for mask in judgement(scene(*BOTH)).masks)
    one = scene(("cat", LEFT))
    assert judgement(one).masks is None
    cat, dog = judgement(one, MaskSettings(missing="absent")).masks
    assert cat.any() and dog is None


def test_nothing_is_found(loaded):
    """Which counts as lost subjects, and is not `None`: nobody knows."""
    image, item = scene(), item_of("cat", "dog")
    instances, remarks = usable(subject_finder(MaskSettings())(image, item), image, item)
    assert instances == []
    doubts = [f"{name!r} is not found: nothing looks like it" for name in ("cat", "dog")]
    assert remarks == ["; ".join(doubts), "no subject found, and 2 asked for"]
    assert judgement(image).masks is None
    absent = MaskSettings(missing="absent")
    assert subject_finder(absent)(image, item) == [] and judgement(image, absent).masks == [None, None]


def test_subjects_without_names(loaded):
    with pytest.raises(ValueError, match="have no names to be searched by"):
        subject_finder(MaskSettings())(scene(*BOTH), item_of("1", "2"))


def test_references_in_files_are_outlined_once(monkeypatch, models, tmp_path):
    scene(("cat", TOP)).save(tmp_path / "cat.png")
    outlined = []

    def outline(images, boxes, segmenter, batch_size=8):
        outlined.extend(images)
        return fill(images, boxes, segmenter, batch_size)

    monkeypatch.setattr("trl_focus.masks.judge.segment", fill)
    monkeypatch.setattr("trl_focus.masks.finding.segment", outline)
    find = subject_finder(MaskSettings("reference", 0.0, matcher=models["dinov2"], segmenter=models["sam"]))
    for row in range(2):
        find(scene(*BOTH), Item(row, "a cat", (), (Subject("1", (tmp_path / "cat.png",)),)))
    assert len(outlined) == 1


@pytest.mark.parametrize("masked", [False, True])
def test_by_reference(monkeypatch, models, masked):
    """With the tiny model, in whose features nothing counts but a patch's colour."""
    shown = []

    def outline(images, *args, batch_size=8):
        shown.extend(images)
        return fill(images, *args, batch_size)

    monkeypatch.setattr("trl_focus.masks.judge.segment", fill)
    monkeypatch.setattr("trl_focus.masks.finding.segment", outline)
    find = subject_finder(MaskSettings("reference", 0.0, matcher=models["dinov2"], segmenter=models["sam"]))
    cat, dog = PIL.Image.new("RGB", (64, 64), (255, 0, 0)), PIL.Image.new("RGB", (64, 64), (0, 0, 255))
    masks = ()
    if masked:  # the other half shows what is not the subject
        half = PIL.Image.fromarray(np.repeat([[255] * 32 + [0] * 32], 64, axis=0).astype(np.uint8))
        cat.paste((0, 255, 0), (32, 0, 64, 64))
        dog.paste((0, 255, 0), (32, 0, 64, 64))
        masks = (half,)
    item = Item(0, "two", (cat, dog), (Subject("1", (cat,), masks), Subject("2", (dog,), masks)))
    image = PIL.Image.new("RGB", (64, 64), "grey")
    image.paste((255, 0, 0), (0, 0, 24, 24))
    image.paste((0, 0, 255), (40, 40, 64, 64))
    instances = find(image, item)
    assert [(each.box, each.subject) for each in instances] == [((0, 0, 24, 24), 0), ((40, 40, 64, 64), 1)]
    assert len(shown) == (0 if masked else 2)  # what stands in a reference without a mask is outlined
