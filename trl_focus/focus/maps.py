# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Focus maps: how much each cell of the denoiser's token grid weighs in the error of an image.

Tensor names carry their shape: B images, R references, S subjects, H W the token grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .allocation import FocusWeights, detail_gate, focus_parts, match_share, subject_gate, weigh
from .correspondence import Correspondence, alignment_ratio, graded, masks_from_similarity, top_k


PRIORS = ("masks", "similarity", "everywhere")
MATCHINGS = ("graded", "top_k", "none")
SHOWN_AT = 0.25  # noise level at which a model is asked what an image shows: little enough to see it


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
        similarity_BRHW (`torch.Tensor` of shape `(B, R, H, W)`, *optional*):
            Cosine similarity in [-1, 1] of each reference's prototype with each cell, of the policy's own features. `None`
            where the map does not ask for it, or the images have no references.
        reference_subjects_BR (`torch.Tensor` of shape `(B, R)`, *optional*):
            Index in [0, S) of the subject that each reference shows.
        reference_shares_BR (`torch.Tensor` of shape `(B, R)`, *optional*):
            Share of each reference that its mask covers, in [0, 1].
        detail_BHW (`torch.Tensor` of shape `(B, H, W)`, *optional*):
            Information density of each image in [0, 1]. `None` where the map does not ask for it.
        shown_BS (`torch.Tensor` of shape `(B, S)`, *optional*):
            How far each image shows each subject, in [0, 1], measured before training: see [`shown`]. `None` without a
            `subject_gate`.
    """

    level_B: torch.Tensor
    grid: tuple[int, int]
    subject_masks_BSHW: torch.Tensor | None = None
    similarity_BRHW: torch.Tensor | None = None
    reference_subjects_BR: torch.Tensor | None = None
    reference_shares_BR: torch.Tensor | None = None
    detail_BHW: torch.Tensor | None = None
    shown_BS: torch.Tensor | None = None


@dataclass(frozen=True)
class FocusSettings:
    """
    How the named maps are made.

    Args:
        weights ([`FocusWeights`]):
            Weight of each part.
        prior (`str`):
            Where the subjects are: `"masks"` of the data, `"similarity"` to the references, or `"everywhere"`.
        matching (`str`):
            How similarity becomes correspondence: `"graded"`, `"top_k"`, or `"none"`.
        gate (`str`), gate_threshold (`float`):
            When detail counts: see [`detail_gate`].
        subject_gate (`str`):
            Which subjects count: those that are `"shown"`, see [`~allocation.subject_gate`], or all of them alike, `"none"`.
    """

    weights: FocusWeights = FocusWeights()
    prior: str = "masks"
    matching: str = "graded"
    gate: str = "level"
    gate_threshold: float = 0.5
    subject_gate: str = "none"


def needs(*inputs: str):
    """
    Says what of [`FocusContext`] a map can't do without, so that no other map pays for it.

    Args:
        inputs (`str`):
            Of `"masks"`, `"similarity"` and `"detail"`.
    """
    if unknown := {*inputs} - {"masks", "similarity", "detail"}:
        raise ValueError(f"A map can need 'masks', 'similarity' or 'detail', not {', '.join(map(repr, unknown))}.")

    def mark(focus_map: Callable) -> Callable:
        focus_map.needs = frozenset(inputs)
        return focus_map

    return mark


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


def with_prior(context: FocusContext, settings: FocusSettings) -> FocusContext:
    """The context with the subject masks that the settings ask for, and each reference's index among them."""
    if settings.prior == "masks":
        return context
    subjects_BR = context.reference_subjects_BR
    if settings.prior == "everywhere":
        masks_BSHW = context.level_B.new_ones(len(context.level_B), 1, *context.grid)
        subjects_BR = None if subjects_BR is None else subjects_BR.clamp(max=0)
    else:
        masks_BSHW, subjects_BR = masks_from_similarity(
            context.similarity_BRHW, context.reference_shares_BR, subjects_BR
        )
    return replace(context, subject_masks_BSHW=masks_BSHW, reference_subjects_BR=subjects_BR)


def correspondence(context: FocusContext, settings: FocusSettings) -> Correspondence | None:
    """Where references are matched and where they leak; `None` without matching or without references."""
    if context.similarity_BRHW is None or settings.matching == "none":
        return None
    similarities = context.similarity_BRHW, context.reference_subjects_BR, context.subject_masks_BSHW
    if settings.matching == "top_k":
        return top_k(*similarities, match_share(context.level_B))
    return graded(*similarities)


def shown(context: FocusContext, settings: FocusSettings) -> torch.Tensor:
    """
    How far images show their subjects: the mean of `M'` over each.

    Returns:
        `torch.Tensor` of shape `(B, S)` in [0, 1]; 0 where a subject is absent, or nothing can be matched.
    """
    context = with_prior(context, settings)
    masks_BSHW, found = context.subject_masks_BSHW.float(), correspondence(context, settings)
    if found is None:
        return masks_BSHW.new_zeros(masks_BSHW.shape[:2])
    area_BS = masks_BSHW.sum(dim=(2, 3)).clamp(min=torch.finfo(torch.float32).tiny)
    return (masks_BSHW * found.matched_BHW.unsqueeze(1)).sum(dim=(2, 3)) / area_BS


def uniform(context: FocusContext, settings: FocusSettings) -> dict[str, torch.Tensor]:
    """`W = 1`: Diffusion-DPO."""
    return {"weights": context.level_B.new_ones(len(context.level_B), *context.grid)}


@needs("masks")
def mask(context: FocusContext, settings: FocusSettings) -> dict[str, torch.Tensor]:
    """`W = b + lambda_p M_prior`: the background weighs `b`, a subject's cell `b + lambda_p`."""
    parts = focus_parts(prior(with_prior(context, settings)))
    return {**parts, "weights": weigh(parts, settings.weights)}


@needs("masks", "similarity")
def patch(context: FocusContext, settings: FocusSettings) -> dict[str, torch.Tensor]:
    """
    In the spirit of [PatchDPO](https://huggingface.co/papers/2412.03177), which rewards patches of high quality and penalizes
    those of low: `W = b + lambda_p c M_prior q`, with `q = M'` on chosen images and `q = 1 - M'` on rejected ones. PatchDPO
    itself has no reference model and takes quality from a vision model of its own.

    `c <= 1` scales the image of a pair whose subjects have the higher mean of `q` down to the other's, where both show any.
    Without it rejected images weigh several times as much as chosen ones, since most cells do not match, and the loss falls
    soonest by drawing the subjects worse in both.
    """
    context = with_prior(context, settings)
    parts = focus_parts(prior(context), correspondence(context, settings))
    counted_BHW = parts["prior"]  # without references nothing tells good cells from bad
    if "matched" in parts:
        chosen = len(counted_BHW) // 2
        quality_BHW = torch.cat([parts["matched"][:chosen], (counted_BHW - parts["matched"])[chosen:]])
        tiny = torch.finfo(torch.float32).tiny
        area_2P, total_2P = (part_BHW.sum(dim=(1, 2)).view(2, chosen) for part_BHW in (counted_BHW, quality_BHW))
        mean_2P = torch.where(area_2P > 0, total_2P / area_2P.clamp(min=tiny), 1)  # no subject has nothing to scale
        scale_2P = mean_2P.amin(dim=0) / mean_2P.clamp(min=tiny)
        counted_BHW = quality_BHW * scale_2P.view(-1, 1, 1)
    return {**parts, "weights": settings.weights.background + settings.weights.prior * counted_BHW}


@needs("masks", "similarity", "detail")
def focus(context: FocusContext, settings: FocusSettings) -> dict[str, torch.Tensor]:
    """
    The map of [FocusDPO](https://huggingface.co/papers/2509.01181), as composed by [`weigh`]: subjects, more where they do not
    match their reference yet, and their detail once noise has fallen.
    """
    context = with_prior(context, settings)
    prior_BHW = prior(context)
    found = correspondence(context, settings)
    gate_B = None
    if context.detail_BHW is not None:
        # Without references there is nothing to be aligned with
        alignment_B = torch.zeros_like(context.level_B) if found is None else alignment_ratio(found[0], prior_BHW)
        gate_B = detail_gate(context.level_B, alignment_B, settings.gate, settings.gate_threshold)
    if settings.subject_gate == "shown" and context.subject_masks_BSHW.shape[1] > 0:
        if context.shown_BS is None:
            raise ValueError(
                "`subject_gate='shown'` is measured on rows that are encoded once, and this batch has no such measure: set "
                "it to 'none' for batches of pixels."
            )
        gate_BS = subject_gate(context.shown_BS)
        gated_BSHW = context.subject_masks_BSHW * gate_BS[..., None, None]
        prior_BHW = prior(replace(context, subject_masks_BSHW=gated_BSHW))
    parts = focus_parts(prior_BHW, found, context.detail_BHW, gate_B, context.level_B)
    return {**parts, "weights": weigh(parts, settings.weights)}


# Name -> map. A new map is one function and one entry here, or a callable of the user's.
FOCUS_MAPS: dict[str, Callable[[FocusContext, FocusSettings], dict[str, torch.Tensor]]] = {
    "uniform": uniform,
    "mask": mask,
    "patch": patch,
    "focus": focus,
}


def required(name: str, settings: FocusSettings) -> frozenset[str]:
    """
    What of the data and the model a named map needs with these settings.

    Returns:
        `frozenset[str]`: Of `"masks"`, `"references"` (in every row), `"similarity"`, `"detail"` and `"shown"`.
    """
    wanted = {*getattr(FOCUS_MAPS[name], "needs", ())}
    if settings.subject_gate == "shown" and FOCUS_MAPS[name] is focus:
        wanted.add("shown")
    if settings.matching == "none":
        wanted.discard("similarity")
    if settings.weights.detail == 0:
        wanted.discard("detail")
    if "masks" in wanted and settings.prior != "masks":
        wanted.discard("masks")
        if settings.prior == "similarity":
            wanted |= {"references", "similarity"}
    return frozenset(wanted)
