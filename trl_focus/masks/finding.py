# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Subjects in the images of an evaluation, by the models that make masks."""

from pathlib import Path

import numpy as np
import PIL.Image

from ..evaluation.benchmark import Item, open_image, open_mask
from ..evaluation.instances import FindInstances, Instance, mask_box
from .boxes import Found
from .detect import detect
from .judge import Search, judge
from .match import match
from .models import load
from .segment import segment
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

    outlines: dict[Path, np.ndarray] = {}  # of references in files, each of which many items may name

    def find(image: PIL.Image.Image, item: Item) -> list[Instance]:
        names = [subject.name for subject in item.subjects]
        if settings.by == "name":
            if nameless(item):
                raise ValueError("its subjects have no names to be searched by")
            places = detect([image] * len(names), names, settings.detector)
        else:
            places = _matched(image, item, settings, outlines)
        (found,) = judge([Search(item.row, "image", "image", image, names)], [places], settings)
        doubt = "; ".join(doubt.removeprefix("image: ") for doubt in found.doubts) or None
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


def _matched(
    image: PIL.Image.Image, item: Item, settings: MaskSettings, outlines: dict[Path, np.ndarray]
) -> list[list[Found]]:
    """Where the image may show each subject; `outlines` are those of references without a mask, and grow."""
    references, shown = [], []
    for index, subject in enumerate(item.subjects):
        masks = subject.masks or [None] * len(subject.references)
        for source, mask in zip(subject.references, masks, strict=True):
            reference = open_image(source)
            if mask is not None:
                mask_HW = open_mask(mask, reference.size)
            elif isinstance(source, Path) and source in outlines:
                mask_HW = outlines[source]
            else:  # as for `add_masks`: it shows its subject and little besides
                ((outline,),) = segment([reference], [[(0, 0, *reference.size)]], settings.segmenter)
                mask_HW = outline.mask_HW.astype(np.float32)
                if not mask_HW.any():
                    mask_HW = np.ones_like(mask_HW)
                if isinstance(source, Path):
                    outlines[source] = mask_HW
            references.append((reference, mask_HW))
            shown.append(index)
    return match([image], [references], [(shown, len(item.subjects))], settings.matcher)[0]
