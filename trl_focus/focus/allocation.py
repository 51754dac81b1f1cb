# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Allocation of focus over noise levels: how the maps of FocusDPO (https://huggingface.co/papers/2509.01181) make one weight per
cell, and how much of each counts at a noise level. The paper says that focus moves from structure to detail as noise
falls; the formulas are our decisions. Nothing here has a gradient or waits for the device.

Tensor names carry their shape: B images, S subjects, H W the token grid.
"""

import math
from dataclasses import astuple, dataclass

import torch

from .correspondence import Correspondence


GATES = ("level", "alignment")
SUBJECT_GATES = ("shown", "none")
NORMALIZATIONS = ("none", "mean", "subject")

# What even a subject of which nothing is found is given: as much as is found of a subject by chance
LEAST_SHOWN = 0.02

# Weight, in full cells, under which a subject counts as absent where subjects are balanced
LEAST = 1e-6


@dataclass(frozen=True)
class FocusWeights:
    """
    Weight of each part of a focus map, at least 0.

    The largest weight a cell can have is `background + prior + max(structure, leak) + detail`, 1 by default: `beta` means on
    such a cell what it means in Diffusion-DPO. A subject's cell has 0.5 once it is matched, 0.7 before, 0.8 where another
    subject shows in it, and up to 0.2 more for detail.

    Args:
        background (`float`, *optional*, defaults to `0.03`):
            Weight of every cell.
        prior (`float`, *optional*, defaults to `0.47`):
            Added on the subjects.
        structure (`float`, *optional*, defaults to `0.2`):
            Added where a subject is neither matched nor leaked into.
        leak (`float`, *optional*, defaults to `0.3`):
            Added where another subject shows in a subject.
        detail (`float`, *optional*, defaults to `0.2`):
            Added on a subject's detail once it is aligned, in full at a noise level of 0.

    Raises:
        ValueError: If a weight is negative or not finite.
    """

    background: float = 0.03
    prior: float = 0.47
    structure: float = 0.2
    leak: float = 0.3
    detail: float = 0.2

    def __post_init__(self):
        if not all(0 <= weight < math.inf for weight in astuple(self)):
            raise ValueError(f"{self}: every weight must be finite and at least 0.")


@torch.no_grad()
def match_share(level_B: torch.Tensor) -> torch.Tensor:
    """
    `kappa`, the share of a subject's area that is to be matched: 0.3 in pure noise, all of it in none.

    Args:
        level_B (`torch.Tensor` of shape `(B,)`):
            Noise level in [0, 1].

    Returns:
        `torch.Tensor` of shape `(B,)` in [0.3, 1].
    """
    return 0.3 + 0.7 * (1 - level_B.float())


@torch.no_grad()
def detail_gate(level_B: torch.Tensor, alignment_B: torch.Tensor | None, by: str, threshold: float) -> torch.Tensor:
    """
    Whether detail counts: not as long as the image is misaligned.

    Args:
        level_B (`torch.Tensor` of shape `(B,)`):
            Noise level in [0, 1].
        alignment_B (`torch.Tensor` of shape `(B,)`, *optional*):
            Share of the subjects that is matched, in [0, 1]. May be `None` where `by="level"`.
        by (`str`):
            `"alignment"`: open where the alignment is at least `threshold`; `"level"`: where the noise level is at most
            that.
        threshold (`float`):
            In [0, 1].

    Returns:
        `torch.Tensor` of shape `(B,)`, fp32: 1 where open, else 0.

    Raises:
        ValueError: If `by` is neither, or is `"alignment"` without any.
    """
    if by == "level":
        return (level_B <= threshold).float()
    if by != "alignment":
        raise ValueError(f"The gate can open by 'alignment' or 'level', got {by!r}.")
    if alignment_B is None:
        raise ValueError("The gate can't open by 'alignment' without a correspondence: choose 'level'.")
    return (alignment_B >= threshold).float()


@torch.no_grad()
def subject_gate(shown_BS: torch.Tensor) -> torch.Tensor:
    """
    How much each subject of a pair counts: as far as the chosen image shows it, relative to the subject that it shows best
    [our decision]. A subject of which it does not show the reference can't be what the label is about. With `m_s` how far
    it shows subject s, and 0.02 for the noise in it, `g_s = (m_s + 0.02) / (max m + 0.02)`.

    Args:
        shown_BS (`torch.Tensor` of shape `(B, S)`):
            How far each image shows each subject, in [0, 1], see [`~maps.shown`]: the chosen images, then the rejected ones of
            the same pairs.

    Returns:
        `torch.Tensor` of shape `(B, S)` in (0, 1], the same for both images of a pair.
    """
    chosen_BS = shown_BS.float().chunk(2)[0] + LEAST_SHOWN
    return (chosen_BS / chosen_BS.amax(dim=1, keepdim=True)).repeat(2, 1)


@torch.no_grad()
def focus_parts(
    prior_BHW: torch.Tensor,
    correspondence: Correspondence | None = None,
    detail_BHW: torch.Tensor | None = None,
    gate_B: torch.Tensor | None = None,
    level_B: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """
    The parts of a focus map, of which its weights are a linear sum: see [`weigh`].

    Structure has no schedule of its own, because `M'` grows by itself as noise falls; detail fades in as noise, which
    hides it, falls.

    Args:
        prior_BHW (`torch.Tensor` of shape `(B, H, W)`):
            `M_prior` in [0, 1]: the subjects.
        correspondence ([`Correspondence`], *optional*):
            `M'` and `M_leak`.
        detail_BHW (`torch.Tensor` of shape `(B, H, W)`, *optional*):
            Information density of the image in [0, 1].
        gate_B, level_B (`torch.Tensor` of shape `(B,)`, *optional*):
            Whether detail counts, 0 or 1, and the noise level in [0, 1]: needed with `detail_BHW`.

    Returns:
        `dict[str, torch.Tensor]`, each of shape `(B, H, W)`, fp32 in [0, 1]: `"prior"`; with a correspondence `"matched"`
        (`M_prior M'`, which has no weight), `"structure"` (`M_s = M_prior (1 - M') (1 - M_leak)`) and `"leak"` (`M_prior
        M_leak`); with detail `"detail"` (`M_prior gate (1 - level) M_d`).
    """
    prior_BHW = prior_BHW.float()
    parts = {"prior": prior_BHW}
    if correspondence is not None:
        matched_BHW, leak_BHW = (part_BHW.float() for part_BHW in correspondence)
        parts["matched"] = prior_BHW * matched_BHW
        parts["structure"] = prior_BHW * (1 - matched_BHW) * (1 - leak_BHW)
        parts["leak"] = prior_BHW * leak_BHW
    if detail_BHW is not None:
        open_B11 = (gate_B.float() * (1 - level_B.float()))[:, None, None]
        parts["detail"] = prior_BHW * open_B11 * detail_BHW.float()
    return parts


@torch.no_grad()
def weigh(parts: dict[str, torch.Tensor], weights: FocusWeights) -> torch.Tensor:
    """
    The focus map: `W = b + lambda_p M_prior + lambda_s M_s + lambda_l M_leak + lambda_d M_d`. Parts that are not there add
    nothing.

    Args:
        parts (`dict[str, torch.Tensor]`, each of shape `(B, H, W)`):
            What [`focus_parts`] returns; `"prior"` at least.
        weights ([`FocusWeights`]):
            Weight of each part.

    Returns:
        `torch.Tensor` of shape `(B, H, W)`, fp32, at least 0.
    """
    weighted = (
        getattr(weights, name) * parts[name] for name in ("prior", "structure", "leak", "detail") if name in parts
    )
    return weights.background + sum(weighted)


@torch.no_grad()
def normalise(weights_BHW: torch.Tensor, how: str, subject_masks_BSHW: torch.Tensor | None = None) -> torch.Tensor:
    """
    Scales a focus map.

    Args:
        weights_BHW (`torch.Tensor` of shape `(B, H, W)`):
            Focus maps, at least 0.
        how (`str`):
            `"none"`: as they are, so that `beta` keeps its meaning per cell. `"mean"`: to a mean of 1 in each image; a map of
            zeros stays so. `"subject"`: so that the subjects of an image all carry the same total, the mean of what they
            did; then a small subject counts as much as a large one, and the map's mean stays what it was.
        subject_masks_BSHW (`torch.Tensor` of shape `(B, S, H, W)`, *optional*):
            Mask of each subject in [0, 1], for `"subject"`. A cell is shared out by its masks, and what they leave is
            background, which keeps its weight; where they come to more than 1 they are scaled down to it. A subject whose
            total is next to nothing counts as absent.

    Returns:
        `torch.Tensor` of shape `(B, H, W)`, fp32, at least 0.

    Raises:
        ValueError: If `how` is none of these, or is `"subject"` without masks.
    """
    weights_BHW = weights_BHW.detach().float()
    if how == "none":
        return weights_BHW
    if how == "mean":
        return weights_BHW / weights_BHW.mean(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    if how != "subject":
        raise ValueError(f"Focus maps can be normalised by 'none', 'mean' or 'subject', got {how!r}.")
    if subject_masks_BSHW is None:
        raise ValueError("Focus maps can't be normalised by 'subject' without subject masks: choose 'none' or 'mean'.")
    masks_BSHW = subject_masks_BSHW.float()
    shares_BSHW = masks_BSHW / masks_BSHW.sum(dim=1, keepdim=True).clamp(min=1)
    total_BS = (shares_BSHW * weights_BHW.unsqueeze(1)).sum(dim=(2, 3))
    present_BS = total_BS > LEAST
    mean_B1 = (total_BS * present_BS).sum(dim=1, keepdim=True) / present_BS.sum(dim=1, keepdim=True).clamp(min=1)
    scale_BS = torch.where(present_BS, mean_B1 / total_BS.clamp(min=LEAST), 1)
    background_BHW = (1 - shares_BSHW.sum(dim=1)).clamp(min=0)
    return weights_BHW * (background_BHW + (shares_BSHW * scale_BS[..., None, None]).sum(dim=1))
