# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Structure-Preserving Attention Field of FocusDPO (https://huggingface.co/papers/2509.01181): which cells of an image already
show the subjects of its references.

Features come from the policy's own forward pass. A reference's are pooled into one prototype, whose cosine similarity with
the image's cells says where that reference is matched. Nothing here has a gradient or waits for the device.

Tensor names carry their shape: B images, R references, S subjects, H W the token grid, P = H * W its cells, D features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F


TOKENS_AT_ONCE = 512  # converted to fp32: 12 MB an image at D = 6144, which stays in the cache
TINY = torch.finfo(torch.float32).tiny


class Correspondence(NamedTuple):
    """
    How the references show in each cell, as a share of what the cell holds of the subjects: `M_prior * matched` is the part
    that a subject's own reference explains, `M_prior * leak` the part that another's does. The mask is thus multiplied in
    once, by whoever uses these. Both are 0 outside every mask, and `matched + leak <= 1`.

    Attributes:
        matched_BHW (`torch.Tensor` of shape `(B, H, W)`):
            `M'` in [0, 1]: the subject's own reference is found.
        leak_BHW (`torch.Tensor` of shape `(B, H, W)`):
            `M_leak` in [0, 1]: another subject's reference is found.
    """

    matched_BHW: torch.Tensor
    leak_BHW: torch.Tensor


@torch.no_grad()
def prototypes(features: Sequence[torch.Tensor], masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    Mean feature of each reference under its mask [paper], not centred: centring made matches worse [our experiments].

    Args:
        features (`Sequence[torch.Tensor]`, each of shape `(B, n, D)`):
            Token features of each reference; references may differ in their number of tokens `n`.
        masks (`Sequence[torch.Tensor]`, each of shape `(B, n)`):
            Mask in [0, 1] of the subject on each reference.

    Returns:
        `torch.Tensor` of shape `(B, R, D)`, fp32. Zero, which matches nothing, for a reference whose mask is empty.

    Raises:
        ValueError: If there are not as many masks as references.
    """
    pooled = []
    for features_BnD, mask_Bn in zip(features, masks, strict=True):
        mask_Bn = mask_Bn.float()
        share_B1n = (mask_Bn / mask_Bn.sum(dim=1, keepdim=True).clamp(min=TINY)).unsqueeze(1)
        with torch.autocast(features_BnD.device.type, enabled=False):
            parts = zip(share_B1n.split(TOKENS_AT_ONCE, dim=2), features_BnD.split(TOKENS_AT_ONCE, dim=1), strict=True)
            pooled.append(sum(share_B1t @ features_BtD.float() for share_B1t, features_BtD in parts))
    return torch.cat(pooled, dim=1)


@torch.no_grad()
def similarity(target_BPD: torch.Tensor, prototypes_BRD: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    Cosine similarity of each reference's prototype with each cell [paper].

    Args:
        target_BPD (`torch.Tensor` of shape `(B, P, D)`):
            Features of the image's tokens, row by row, in any dtype.
        prototypes_BRD (`torch.Tensor` of shape `(B, R, D)`):
            Prototypes.
        grid (`tuple[int, int]`):
            Height and width of the token grid.

    Returns:
        `torch.Tensor` of shape `(B, R, H, W)` in [-1, 1], fp32; 0 for a reference with an empty mask.
    """
    # 2 B P D (R + 1) FLOPs, 1.1 GFLOP at B 2, P 4096, D 6144, R 10, and one reading of the features, 0.1 GB in bf16. A product
    # in bf16 would save the fp32 parts, but round the result to steps of 0.004 where it matters, near 1.
    with torch.autocast(target_BPD.device.type, enabled=False):
        unit_BDR = F.normalize(prototypes_BRD.float(), dim=2).transpose(1, 2)
        parts = []
        for part_BtD in target_BPD.split(TOKENS_AT_ONCE, dim=1):
            part_BtD = part_BtD.float()
            norm_Bt1 = torch.linalg.vector_norm(part_BtD, dim=2, keepdim=True)
            parts.append(part_BtD @ unit_BDR / norm_Bt1.clamp(min=TINY))
    return torch.cat(parts, dim=1).clamp(-1, 1).transpose(1, 2).unflatten(2, grid)


@torch.no_grad()
def top_k(
    similarity_BRHW: torch.Tensor,
    reference_subjects_BR: torch.Tensor,
    subject_masks_BSHW: torch.Tensor,
    share_B: torch.Tensor,
) -> Correspondence:
    """
    Correspondence by rank: a reference matches the `ceil(share * area)` cells of the image that are most similar to it, with
    `area` that of its subject's mask on the image [paper; the number is our decision].

    A match inside its own subject's mask is `M'`; inside another's it is leakage, unless that one's own reference matches
    the cell too; outside every mask it counts for nothing [our decision]. Cells as similar as the last match are matched
    with it, and a cell with a similarity of 0 or less never is.

    Args:
        similarity_BRHW (`torch.Tensor` of shape `(B, R, H, W)`):
            Similarity of each reference with each cell, in [-1, 1].
        reference_subjects_BR (`torch.Tensor` of shape `(B, R)`):
            Which subject each reference shows, a long in [0, S). A reference with any other number, such as -1, is left out.
        subject_masks_BSHW (`torch.Tensor` of shape `(B, S, H, W)`):
            Mask of each subject in [0, 1]; all zero where a subject is absent.
        share_B (`torch.Tensor` of shape `(B,)`):
            Share of a subject's area that is to be matched, at least 0: `match_share` of the noise level.

    Returns:
        [`Correspondence`].
    """
    masks_BSHW = subject_masks_BSHW.float()
    own_BRS, foreign_BRS = _subjects(reference_subjects_BR, masks_BSHW.shape[1])
    area_BR = (own_BRS * masks_BSHW.sum(dim=(2, 3)).unsqueeze(1)).sum(dim=2)
    match_BR1HW = _best(similarity_BRHW, share_B.float().unsqueeze(1) * area_BR).unsqueeze(2)
    matched_BSHW = (match_BR1HW & own_BRS[..., None, None]).any(dim=1)
    leak_BSHW = (match_BR1HW & foreign_BRS[..., None, None]).any(dim=1)  # yields to a match below
    return _in_masks(matched_BSHW.float(), leak_BSHW.float(), masks_BSHW)


@torch.no_grad()
def graded(
    similarity_BRHW: torch.Tensor, reference_subjects_BR: torch.Tensor, subject_masks_BSHW: torch.Tensor
) -> Correspondence:
    """
    Correspondence by degree: how much of the way from the background's similarity to 1 a cell has gone [our decision].

    Cosines of features that are not centred are all near 1, so each reference's are put on the scale of the image itself:
    `(similarity - background) / (1 - background)`, clamped to [0, 1], with the background's mean outside every mask, or
    over the whole image if the masks leave nothing. Unlike a rank this can find a whole subject, or none of it, matched, and
    it needs neither a temperature nor a schedule: similarity itself grows as noise falls.

    `M'` is the best of the cell's own references, `M_leak` what the best foreign one has over it; so their sum is at most 1,
    and references that are alike leak nothing. A subject that no reference shows has nothing to compare and is 0 in both.

    Args:
        similarity_BRHW, reference_subjects_BR, subject_masks_BSHW:
            As for [`top_k`].

    Returns:
        [`Correspondence`].
    """
    masks_BSHW, similarity_BRHW = subject_masks_BSHW.float(), similarity_BRHW.float()
    own_BRS, foreign_BRS = _subjects(reference_subjects_BR, masks_BSHW.shape[1])
    # The 1e-6 counts only where there is no background: all the cells of a large image come to less than 1 % of one
    outside_B1HW = 1 - _largest(masks_BSHW).unsqueeze(1) + 1e-6
    background_BR11 = (similarity_BRHW * outside_B1HW).sum(dim=(2, 3), keepdim=True)
    background_BR11 = background_BR11 / outside_B1HW.sum(dim=(2, 3), keepdim=True)
    found_BRHW = (similarity_BRHW - background_BR11) / (1 - background_BR11).clamp(min=1e-6)
    found_BR1HW = found_BRHW.clamp(0, 1).unsqueeze(2)
    matched_BSHW = _largest(found_BR1HW * own_BRS[..., None, None])
    foreign_BSHW = _largest(found_BR1HW * foreign_BRS[..., None, None])
    pooled_BR1 = (similarity_BRHW != 0).flatten(2).any(dim=2, keepdim=True)  # not from an empty mask
    shown_BS11 = (own_BRS & pooled_BR1).any(dim=1)[..., None, None]
    return _in_masks(matched_BSHW, (foreign_BSHW - matched_BSHW).clamp(min=0) * shown_BS11, masks_BSHW)


@torch.no_grad()
def masks_from_similarity(
    similarity_BRHW: torch.Tensor, reference_shares_BR: torch.Tensor, reference_subjects_BR: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Subject masks for images that have none: of each reference its most similar cells, as many as its subject covers of it,
    on an R-th of the image [our decision]. References of one subject share a mask, and subjects may overlap.

    Args:
        similarity_BRHW (`torch.Tensor` of shape `(B, R, H, W)`):
            Similarity of each reference with each cell, in [-1, 1].
        reference_shares_BR (`torch.Tensor` of shape `(B, R)`):
            Mean of each reference's mask, in [0, 1].
        reference_subjects_BR (`torch.Tensor` of shape `(B, R)`):
            Which subject each reference shows, a long; a reference with a negative one is left out.

    Returns:
        `tuple`: masks of shape `(B, R, H, W)`, 0 or 1, one per subject at the place of its first reference and 0 elsewhere,
        and that place for each reference, a long of shape `(B, R)`, or -1.
    """
    references, height, width = similarity_BRHW.shape[1:]
    best_BRHW = _best(similarity_BRHW, reference_shares_BR.float() * (height * width / references))
    same_BRR = reference_subjects_BR.unsqueeze(2) == reference_subjects_BR.unsqueeze(1)
    first_BR = same_BRR.int().argmax(dim=2).where(reference_subjects_BR >= 0, -1)
    own_BRS, _ = _subjects(first_BR, references)
    masks_BSHW = (best_BRHW.unsqueeze(2) & own_BRS[..., None, None]).any(dim=1)
    return masks_BSHW.float(), first_BR


@torch.no_grad()
def alignment_ratio(matched_BHW: torch.Tensor, prior_BHW: torch.Tensor) -> torch.Tensor:
    """
    Share of the subjects that is matched: `sum(M' M_prior) / sum(M_prior)` [our decision].

    Returns:
        `torch.Tensor` of shape `(B,)` in [0, 1]; 0 where there are no subjects.
    """
    prior_BHW = prior_BHW.float()
    matched_B = (matched_BHW.float() * prior_BHW).sum(dim=(1, 2))
    return (matched_B / prior_BHW.sum(dim=(1, 2)).clamp(min=TINY)).clamp(max=1)


def _subjects(reference_subjects_BR: torch.Tensor, subjects: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each reference shows each subject, and whether it shows another of them: two bool `(B, R, S)`."""
    ids_S = torch.arange(subjects, device=reference_subjects_BR.device)
    own_BRS = reference_subjects_BR.unsqueeze(2) == ids_S
    return own_BRS, own_BRS.any(dim=2, keepdim=True) & ~own_BRS


def _best(similarity_BRHW: torch.Tensor, number_BR: torch.Tensor) -> torch.Tensor:
    """Whether a cell is one of the `ceil(number)` most similar to each reference: bool `(B, R, H, W)`."""
    sorted_BRP = similarity_BRHW.flatten(2).sort(dim=2, descending=True).values
    number_BR = (number_BR - 1e-4).ceil().long()  # 0.3 of 10 cells is 3, whichever way fp32 rounds it
    last_BR = (number_BR - 1).clamp(0, sorted_BRP.shape[2] - 1)
    least_BR1 = sorted_BRP.gather(2, last_BR.unsqueeze(2))
    best_BRHW = similarity_BRHW >= least_BR1.unsqueeze(3)
    return best_BRHW & (similarity_BRHW > 0) & (number_BR > 0)[..., None, None]


def _in_masks(matched_BSHW: torch.Tensor, leak_BSHW: torch.Tensor, masks_BSHW: torch.Tensor) -> Correspondence:
    """Joins the subjects of a cell: what they hold of it, over the prior; a match goes before leakage."""
    prior_BHW = _largest(masks_BSHW).clamp(min=TINY)
    matched_BHW = _largest(masks_BSHW * matched_BSHW) / prior_BHW
    leak_BHW = _largest(masks_BSHW * leak_BSHW) / prior_BHW
    return Correspondence(matched_BHW, torch.minimum(leak_BHW, 1 - matched_BHW))


def _largest(values: torch.Tensor) -> torch.Tensor:
    """Maximum along dim 1 of values that are at least 0; 0 where there are none."""
    return torch.cat([values, values.new_zeros(len(values), 1, *values.shape[2:])], dim=1).amax(dim=1)
