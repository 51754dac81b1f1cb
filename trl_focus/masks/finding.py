# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Subjects in the images of an evaluation, by the models that make masks."""

import numpy as np
import PIL.Image

from ..evaluation.benchmark import Item, open_image, open_mask
from ..evaluation.instances import FindInstances, Instance, mask_box
from .boxes import Found
from .detect import detect
from .judge import Search, judge
from .match import match
from .models import load
from .settings import MaskSettings


def subject_finder(settings: MaskSettings) -> FindInstances:
    """
    Finds in an image the subjects that it was asked for: by their names, or by what their references look like.

    Args:
        settings ([`MaskSettings`]):
            How subjects are found. Its models are loaded at once.

    Returns:
        `FindInstances`: The instance of each subject that is found, with its mask. A doubt about one of them, as of a subject
        that is not found though it is not said to be `absent`, is told of all in the image. It raises a `ValueError` where
        subjects without names are searched by name.

    Raises:
        OSError, ValueError, ImportError: If a model can't be loaded.
    """
    used = {"segmenter": settings.segmenter}
    used |= {"detector": settings.detector} if settings.by == "name" else {"matcher": settings.matcher}
    for kind, name in used.items():
        load(kind, name)

    def find(image: PIL.Image.Image, item: Item) -> list[Instance]:
        names = [subject.name for subject in item.subjects]
        if settings.by == "name":
            if nameless(item):
                raise ValueError("its subjects have no names to be searched by")
            places = detect([image] * len(names), names, settings.detector)
        else:
            places = _matched(image, item, settings.matcher)
        (found,) = judge([Search(item.row, "image", "image", image, names)], [places], settings)
        doubt = "; ".join(found.doubts) or None
        instances = [
            Instance(mask_box(outline.mask_HW), outline.mask_HW.astype(np.float32), subject, doubt)
            for subject, outline in enumerate(found.outlines)
            if outline is not None and outline.mask_HW.any()
        ]
        if doubt and not instances:
            return [Instance((0, 0, 0, 0), doubt=doubt)]
        return instances

    return find


def nameless(item: Item) -> bool:
    """Whether the subjects of an item are numbered, since nobody has named them."""
    return [subject.name for subject in item.subjects] == [str(i + 1) for i in range(len(item.subjects))]


def _matched(image: PIL.Image.Image, item: Item, matcher: str) -> list[list[Found]]:
    references, shown = [], []
    for index, subject in enumerate(item.subjects):
        masks = subject.masks or [None] * len(subject.references)
        for source, mask in zip(subject.references, masks, strict=True):
            reference = open_image(source)
            whole_HW = np.ones(reference.size[::-1], np.float32)
            references.append((reference, whole_HW if mask is None else open_mask(mask, reference.size)))
            shown.append(index)
    return match([image], [references], [(shown, len(item.subjects))], matcher)[0]
