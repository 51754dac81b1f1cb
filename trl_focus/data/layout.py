# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Layouts: the sizes at which the images of a row are trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


MAX_STRETCH = 1.1  # how much the aspect ratios of chosen and rejected may differ before one of them looks distorted


class Layout(NamedTuple):
    """Sizes of one row's images after resizing, each as (height, width) in pixels."""

    size: tuple[int, int]
    reference_sizes: tuple[tuple[int, int], ...] = ()


def target_size(width: int, height: int, resolution: int, multiple: int) -> tuple[int, int]:
    """
    Size (height, width) at which an image is trained: its aspect ratio, an area of about `resolution` squared.

    Sides are rounded to a sixteenth of the resolution (and to `multiple` pixels), which keeps the number of layouts small
    and changes the aspect ratio by at most 7 % (at 512 pixels or more, up to 4:1; by more at small resolutions).
    """
    step = max(multiple, resolution // 16 // multiple * multiple)
    scale = resolution / math.sqrt(width * height)
    height, width = (max(step, round(side * scale / step) * step) for side in (height, width))
    return height, width


@dataclass
class LayoutRule:
    """
    Layout of a row, from the sizes (width, height) of its images.

    Args:
        resolution (`int`):
            Side in pixels of a square of the area at which pairs are trained.
        multiple (`int`):
            What sides must be multiples of, in pixels.
        references ([`~families.base.ReferenceRule`], *optional*):
            How the model sizes references; `None` if it takes none.
        stretch (`bool`):
            Whether whole images are resized to the target size, so that chosen and rejected need one aspect ratio.
        reference_counts (`tuple[int, int | None]`):
            Fewest and most references that the model takes; `None` is no limit.
    """

    resolution: int
    multiple: int
    references: Any = None
    stretch: bool = True
    reference_counts: tuple[int, int | None] = (0, None)

    def __call__(
        self, chosen: tuple[int, int], rejected: tuple[int, int], references: Sequence[tuple[int, int]] = ()
    ) -> Layout:
        """
        Raises:
            ValueError: If these images can't be trained on; the message begins with the column.
        """
        size = self.target(chosen, rejected)
        if references and self.references is None:
            raise ValueError(
                "`references` is not empty, and this model takes no reference images. Leave them out with "
                "`dataset.remove_columns(['references'])` (and `reference_masks`, `reference_subjects`), or teach FLUX.1 to look "
                "at them with `reference_positions`"
            )
        least, most = self.reference_counts
        if len(references) < least or (most is not None and len(references) > most):
            takes = f"exactly {most}" if least == most else f"at least {least}" if most is None else f"at most {most}"
            raise ValueError(f"`references` holds {len(references) or 'no'} images, and this model takes {takes}")
        rule = self.references and self.references.among(len(references))
        sizes = []
        for reference in references:
            try:
                sizes.append(rule.size(*reference))
            except ValueError as error:
                raise ValueError(f"`references` holds an image that this model refuses: {error}") from error
        return Layout(size, tuple(sizes))

    def target(self, chosen: tuple[int, int], rejected: tuple[int, int]) -> tuple[int, int]:
        """Size (height, width) of the target alone. Raises a `ValueError` where one would be distorted."""
        ratio = (chosen[0] * rejected[1]) / (chosen[1] * rejected[0])
        if self.stretch and max(ratio, 1 / ratio) > MAX_STRETCH:
            raise ValueError(
                "`rejected` is {}x{} pixels and `chosen` {}x{}: the aspect ratios differ too much to resize both to one "
                "size. Crop or pad one of them, or set `crop` to 'center' or 'random'".format(*rejected, *chosen)
            )
        return target_size(*chosen, self.resolution, self.multiple)
