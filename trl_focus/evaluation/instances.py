# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Where the subjects are in an image, and how they are cut out of it. What finds them is a function, so that a detector can
stand in for the boxes of the benchmark.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import ceil, floor
from typing import NamedTuple

import numpy as np
import PIL.Image

from .benchmark import Item


NEUTRAL = 128  # the grey around what is cut out
OVERLAP = 0.1  # of the smaller mask, from which on it is told


class Instance(NamedTuple):
    """
    Something in an image that may be one of the subjects.

    Attributes:
        box (`tuple[float, float, float, float]`):
            Left, top, right and bottom in pixels; right and bottom lie outside. What is cut out has whole pixels.
        mask (`np.ndarray` of shape `(H, W)`, *optional*):
            Its mask on the whole image, in [0, 1]. What it leaves out becomes grey.
        subject (`int`, *optional*):
            Index of the subject that it stands for, where that is known. Of one image it is known of all or of none: then
            they are assigned by similarity.
        doubt (`str`, *optional*):
            Why it can't be relied on. It is measured nevertheless, but its mask is not trained on.
    """

    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None
    subject: int | None = None
    doubt: str | None = None


FindInstances = Callable[[PIL.Image.Image, Item], Sequence[Instance] | None]  # `None`: it is not known where they are


def asked_boxes(image: PIL.Image.Image, item: Item) -> list[Instance] | None:
    """The boxes in which the benchmark asks for its subjects; `None` where it does not say of all."""
    if any(subject.box is None for subject in item.subjects):
        return None  # a subject of which nothing is said is not a subject that is lost
    scale = (*image.size, *image.size)
    return [
        Instance(tuple(round(side * length) for side, length in zip(subject.box, scale, strict=True)), subject=index)
        for index, subject in enumerate(item.subjects)
    ]


def mask_box(mask_HW: np.ndarray) -> tuple[int, int, int, int]:
    """
    The smallest box around a mask.

    Args:
        mask_HW (`np.ndarray` of shape `(H, W)`):
            In [0, 1]; above 0.5 is inside.

    Returns:
        `tuple[int, int, int, int]`: Left, top, right and bottom; all 0 for an empty mask.
    """
    rows, columns = (np.flatnonzero((mask_HW > 0.5).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def cut_out(
    image: PIL.Image.Image, box: tuple[int, int, int, int], mask_HW: np.ndarray | None = None
) -> PIL.Image.Image:
    """
    Cuts a box out of an image, in the middle of a grey square: models cut what is oblong down to a square.

    Args:
        image (`PIL.Image.Image`):
            RGB image.
        box (`tuple[int, int, int, int]`):
            Left, top, right and bottom, in the image and not empty.
        mask_HW (`np.ndarray` of shape `(H, W)`, *optional*):
            What of the image is kept, in [0, 1].
    """
    if mask_HW is not None:
        pixels = np.asarray(image, dtype=np.float32)
        kept = NEUTRAL + mask_HW[:, :, None] * (pixels - NEUTRAL)
        image = PIL.Image.fromarray(kept.round().astype(np.uint8))
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    square = PIL.Image.new("RGB", (side, side), (NEUTRAL,) * 3)
    square.paste(image.crop(box), ((side - right + left) // 2, (side - bottom + top) // 2))
    return square


def usable(instances: Sequence[Instance], image: PIL.Image.Image, item: Item) -> tuple[list[Instance], list[str]]:
    """
    Instances that can be cut out, with their boxes inside of the image, and what is to be said of them.

    Args:
        instances (`Sequence[Instance]`):
            What was found in the image.
        image (`PIL.Image.Image`):
            The image.
        item (`Item`):
            What was asked for.

    Returns:
        `tuple[list[Instance], list[str]]`: Those that are not empty, and remarks: doubts, empty ones, masks that overlap, more
        or fewer than there are subjects.

    Raises:
        ValueError: If a mask has another size than the image, or of some instances the subject is known and of others not, or
            two stand for the same.
    """
    kept, remarks = [], [*dict.fromkeys(instance.doubt for instance in instances if instance.doubt)]
    width, height = image.size
    for number, instance in enumerate(instances):
        if instance.mask is not None and instance.mask.shape != (height, width):
            raise ValueError(
                "the mask of instance {} has {}x{} pixels and the image {}x{}".format(
                    number, *instance.mask.shape[::-1], width, height
                )
            )
        if instance.subject is not None and not 0 <= instance.subject < len(item.subjects):
            raise ValueError(
                f"instance {number} stands for subject {instance.subject}, and there are {len(item.subjects)}, from 0"
            )
        left, top, right, bottom = instance.box
        box = max(floor(left), 0), max(floor(top), 0), min(ceil(right), width), min(ceil(bottom), height)
        empty = box[0] >= box[2] or box[1] >= box[3]
        if empty or (instance.mask is not None and not (instance.mask[box[1] : box[3], box[0] : box[2]] > 0.5).any()):
            if not instance.doubt:
                remarks.append(f"instance {number} is empty, and left out")
        else:
            kept.append(instance._replace(box=box))
    known = [instance.subject for instance in kept if instance.subject is not None]
    if known and (len(known) < len(kept) or len({*known}) < len(known)):
        raise ValueError("it is known of some instances alone, or not of one alone, which subject they stand for")
    for first, second in combinations(range(len(kept)), 2):
        masks = [kept[i].mask for i in (first, second)]
        if all(mask is not None for mask in masks):
            one, other = (mask > 0.5 for mask in masks)
            if (one & other).sum() > OVERLAP * min(one.sum(), other.sum()):
                remarks.append(f"the masks of instances {first} and {second} overlap")
    if len(kept) != len(item.subjects):
        found = f"{len(kept)} instance{'s' * (len(kept) != 1)}" if kept else "no subject"
        remarks.append(f"{found} found, and {len(item.subjects)} asked for")
    return kept, remarks
