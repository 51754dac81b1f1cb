# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Focus maps: how much each cell of the denoiser's token grid weighs in the error of an image.

Tensor names carry their shape: B images, S subjects, H W the token grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FocusContext:
    """
    What a focus map is made of, for B images: the chosen ones first, then the rejected ones of the same pairs.

    Attributes:
        level_B (`torch.Tensor` of shape `(B,)`):
            Noise level in [0, 1].
        grid (`tuple[int, int]`):
            Height and width of the token grid.
        subject_masks_BSHW (`torch.Tensor` of shape `(B, S, H, W)`, *optional*):
            Mask of each subject in [0, 1], each image its own; all zero where a subject is absent. `None` where the data
            has no masks.
    """

    level_B: torch.Tensor
    grid: tuple[int, int]
    subject_masks_BSHW: torch.Tensor | None = None


def prior(context: FocusContext) -> torch.Tensor:
    """
    `M_prior`: the union of the subjects' masks on each image.

    Returns:
        `torch.Tensor` of shape `(B, H, W)` in [0, 1].

    Raises:
        ValueError: If there are no masks.
    """
    masks_BSHW = context.subject_masks_BSHW
    if masks_BSHW is None:
        raise ValueError("A batch has no subject masks: give every row `chosen_masks` and `rejected_masks`.")
    if masks_BSHW.shape[1] == 0:
        return masks_BSHW.new_zeros(len(masks_BSHW), *context.grid)
    return masks_BSHW.amax(dim=1)


def uniform(context: FocusContext, background_weight: float, prior_weight: float) -> torch.Tensor:
    """`W = 1`: Diffusion-DPO."""
    return context.level_B.new_ones(len(context.level_B), *context.grid)


def mask(context: FocusContext, background_weight: float, prior_weight: float) -> torch.Tensor:
    """`W = b + lambda_p M_prior`: the background weighs `b`, a subject's cell `b + lambda_p`."""
    return background_weight + prior_weight * prior(context)


# Name -> map. A new map is one function and one entry here, or a callable of the user's.
FOCUS_MAPS: dict[str, Callable[..., torch.Tensor]] = {"uniform": uniform, "mask": mask}

# What needs masks in every row of the data.
NEEDS_MASKS = {"mask"}
