# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Ways to make a pair of a row. Each is a function of the row, of what it asks for, and of a seed of its own, to the columns
that it adds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image

from ..evaluation.benchmark import Item, open_image, open_mask
from .corruption import corrupt
from .judging import Judge, Judgement
from .rows import mask_image


class NoPairError(Exception):
    """A row is good, and still no pair comes of it. Says why."""


Draw = Callable[[Item, int], PIL.Image.Image]  # an image of an item, from a seed
Maker = Callable[[Mapping[str, Any], Item, int], dict[str, Any]]


def best_and_worst(draw: Draw, judge: Judge, n_samples: int, margin: float) -> Maker:
    """
    Draws images and takes the best against the worst.

    Args:
        draw (`Draw`):
            Draws an image.
        judge (`Judge`):
            Says how good it is.
        n_samples (`int`):
            Images of each row, at least two, from as many seeds in a row.
        margin (`float`):
            How much better the best has to be than the worst.
    """

    def make(row: Mapping[str, Any], item: Item, seed: int) -> dict[str, Any]:
        images, judgements = _samples(draw, judge, item, seed, n_samples)
        totals = [judgement.total for judgement in judgements]
        best, worst = int(np.argmax(totals)), int(np.argmin(totals))
        return _pair(
            [images[best], images[worst]],
            [judgements[best], judgements[worst]],
            margin,
            {"seeds": {"chosen": seed + best, "rejected": seed + worst}},
        )

    return make


def target_and_sample(draw: Draw, judge: Judge, n_samples: int, margin: float) -> Maker:
    """
    Takes the row's own image, `chosen`, against the worst of those that are drawn.

    Args:
        draw, judge, n_samples, margin:
            As in [`best_and_worst`]; one sample is enough.
    """

    def make(row: Mapping[str, Any], item: Item, seed: int) -> dict[str, Any]:
        target = _target(row)
        images, judgements = _samples(draw, judge, item, seed, n_samples)
        worst = int(np.argmin([judgement.total for judgement in judgements]))
        judged = judge(target, item)
        if row.get("chosen_masks") is not None:
            judged = judged._replace(masks=_target_masks(row, target))
        return _pair(
            [target, images[worst]], [judged, judgements[worst]], margin, {"seeds": {"rejected": seed + worst}}
        )

    return make


def target_and_corrupted(kinds: tuple[str, ...]) -> Maker:
    """
    Takes the row's own image, `chosen`, against itself with one subject spoilt. Needs `chosen_masks`, and no model.

    Args:
        kinds (`tuple[str, ...]`):
            Out of [`~pairs.corruption.CORRUPTIONS`].
    """

    def make(row: Mapping[str, Any], item: Item, seed: int) -> dict[str, Any]:
        target = _target(row)
        if row.get("chosen_masks") is None:
            raise ValueError("it has no `chosen_masks`, which say where the subjects are")
        masks = _target_masks(row, target)
        absent = np.zeros(target.size[::-1], np.float32)
        masks_SHW = np.stack([absent if mask is None else mask for mask in masks])
        pixels_HWC = np.asarray(target, dtype=np.float32) / 255
        found, kind, subject = corrupt(pixels_HWC, masks_SHW, kinds, np.random.default_rng(seed))
        spoilt = PIL.Image.fromarray((255 * found.pixels_HWC).round().clip(0, 255).astype(np.uint8))
        return {
            "chosen": target,
            "rejected": spoilt,
            "chosen_masks": [*map(mask_image, masks)],
            "rejected_masks": [mask_image(mask if mask.any() else None) for mask in found.masks_SHW],
            "margin": None,
            "provenance": {"corruption": kind, "subject": item.subjects[subject].name, "seed": seed},
        }

    return make


def _samples(
    draw: Draw, judge: Judge, item: Item, seed: int, n_samples: int
) -> tuple[list[PIL.Image.Image], list[Judgement]]:
    images = [draw(item, seed + number) for number in range(n_samples)]
    return images, [judge(image, item) for image in images]


def _pair(
    images: Sequence[PIL.Image.Image], judgements: Sequence[Judgement], margin: float, provenance: dict[str, Any]
) -> dict[str, Any]:
    better, worse = judgements
    found = better.total - worse.total
    if found < margin:
        raise NoPairError(f"its images differ by {found:.3g}, less than the margin of {margin:g}")
    if np.array_equal(images[0], images[1]):
        raise NoPairError("its images are the same picture")
    with_masks = all(judgement.masks is not None for judgement in judgements)
    masks = [[*map(mask_image, judgement.masks)] if with_masks else None for judgement in judgements]
    return {
        **dict(zip(("chosen", "rejected"), images, strict=True)),
        **dict(zip(("chosen_masks", "rejected_masks"), masks, strict=True)),
        "margin": found,
        "provenance": {**provenance, "scores": {"chosen": better.scores, "rejected": worse.scores}},
    }


def _target(row: Mapping[str, Any]) -> PIL.Image.Image:
    if row.get("chosen") is None:
        raise ValueError("it has no image `chosen`")
    return open_image(row["chosen"])


def _target_masks(row: Mapping[str, Any], target: PIL.Image.Image) -> list[np.ndarray | None]:
    return [None if mask is None else open_mask(mask, target.size) for mask in row["chosen_masks"]]
