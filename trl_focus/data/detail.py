# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The information density of a pair's images, computed once and kept as two more columns beside the preference schema."""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch

from .. import __version__
from ..focus.complexity import complexity
from .images import decode_image
from .layout import LayoutRule


DETAIL_COLUMNS = ("chosen_detail", "rejected_detail")


def detail_image(image: PIL.Image.Image, target: tuple[int, int], rule: LayoutRule) -> PIL.Image.Image:
    """
    Information density of an image, in its own aspect ratio where it is going to be cropped, at the scale at which it is
    trained.

    Args:
        image (`PIL.Image.Image`):
            RGB image.
        target (`tuple[int, int]`):
            Height and width in pixels at which its pair is trained.
        rule ([`LayoutRule`]):
            Says whether images are stretched to the target or cropped, and the size of a cell.

    Returns:
        `PIL.Image.Image`: Of mode L, one pixel per cell; 255 is the largest density.
    """
    height, width = target
    if not rule.stretch:
        scale = max(width / image.width, height / image.height)
        height, width = (
            max(1, round(side * scale / rule.multiple)) * rule.multiple for side in (image.height, image.width)
        )
    pixels = np.array(image.resize((width, height), PIL.Image.Resampling.LANCZOS))
    density_HW = complexity(torch.from_numpy(pixels).permute(2, 0, 1)[None], rule.multiple)[0]
    return PIL.Image.fromarray((density_HW * 255).round().byte().numpy())


def with_detail(row: Mapping[str, Any], rule: LayoutRule) -> dict[str, PIL.Image.Image]:
    """The information density of a row's chosen and rejected image, as columns `chosen_detail` and `rejected_detail`."""
    images = [decode_image(row[name]).convert("RGB") for name in ("chosen", "rejected")]
    target = rule(*(image.size for image in images)).size
    return {name: detail_image(image, target, rule) for name, image in zip(DETAIL_COLUMNS, images, strict=True)}


def _detail_row(table, rule: LayoutRule, version: str) -> dict[str, PIL.Image.Image]:
    return with_detail(table.to_pylist()[0], rule)


def detail_columns(dataset: datasets.Dataset, rule: LayoutRule, num_proc: int | None = None) -> datasets.Dataset:
    """
    The columns `chosen_detail` and `rejected_detail` of a dataset, without the others. `datasets` caches them: they are
    computed once for a resolution, at some 0.4 seconds an image of 1024x1024 pixels on one core.
    """
    pairs = dataset.select_columns(["chosen", "rejected"])
    return (
        pairs.with_format("arrow")
        .map(  # images stay encoded up to `_detail_row`
            _detail_row,
            remove_columns=pairs.column_names,
            features=datasets.Features({name: datasets.Image() for name in DETAIL_COLUMNS}),
            num_proc=num_proc,
            fn_kwargs={"rule": _without_references(rule), "version": __version__},  # parts of the fingerprint
            desc="Measuring detail",
        )
        .with_format(None)
    )


def _without_references(rule: LayoutRule) -> LayoutRule:
    """How references are sized changes nothing here, and must not undo the cache."""
    return LayoutRule(rule.resolution, rule.multiple, stretch=rule.stretch)
