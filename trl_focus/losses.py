# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Preference losses of diffusion models: pure functions of per-image errors.

Tensor names carry their shape: B pairs (or images), H W the denoiser's token grid.

For one pair, `dw` is the error of the policy minus the error of the reference on the chosen image, `dl` the same on the
rejected one (each a mean over the token grid, weighted by a focus map in FocusDPO). The implicit rewards are
`-beta/2 * dw` and `-beta/2 * dl`, their difference is `inside`, and `gap = inside / beta`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F


def mean_error(error_BHW: torch.Tensor, weights_BHW: torch.Tensor | None = None) -> torch.Tensor:
    """
    Mean of an error over the token grid, weighted by a map if one is given: `1/P sum_p W(p) e(p)`.

    The sum is divided by the number of cells, not by the sum of the weights, so that `beta` keeps its meaning on a cell
    of weight 1.

    Args:
        error_BHW (`torch.Tensor` of shape `(B, H, W)`):
            Error of each cell, or a difference of errors.
        weights_BHW (`torch.Tensor` of shape `(B, H, W)`, *optional*):
            Weight of each cell, at least 0. `None` is the weight 1 everywhere.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    if weights_BHW is not None:
        error_BHW = error_BHW * weights_BHW
    return error_BHW.mean(dim=(1, 2))


class PreferenceTerms(NamedTuple):
    """
    What a preference loss is made of, for `B` pairs.

    Attributes:
        gap_B (`torch.Tensor` of shape `(B,)`):
            Difference of the implicit rewards before `beta`: `-1/2 * (dw - dl)`.
        chosen_error_B (`torch.Tensor` of shape `(B,)`):
            Denoising error of the policy on the chosen image.
        beta (`float` or `torch.Tensor`):
            Strength of the tie to the reference, above 0.
        label_smoothing (`float`):
            Probability that a label is flipped, in [0, 0.5). Read by `robust` alone.
        drift_B (`torch.Tensor` of shape `(B,)`, *optional*):
            Mean square by which the policy's predictions for both images differ from the reference's. Read by `anchor` alone.
    """

    gap_B: torch.Tensor
    chosen_error_B: torch.Tensor
    beta: float | torch.Tensor
    label_smoothing: float = 0.0
    drift_B: torch.Tensor | None = None

    @property
    def inside_B(self) -> torch.Tensor:
        """Argument of the sigmoid: `beta * gap`, the difference of the implicit rewards."""
        return self.beta * self.gap_B


def sigmoid(terms: PreferenceTerms) -> torch.Tensor:
    """`-log sigmoid(inside)`: Diffusion-DPO (https://huggingface.co/papers/2311.12908, eq. 14)."""
    return -F.logsigmoid(terms.inside_B)


def robust(terms: PreferenceTerms) -> torch.Tensor:
    """
    Sigmoid loss, unbiased where a share `eps` of the labels is flipped (https://huggingface.co/papers/2403.00409):
    `[-(1 - eps) log sigmoid(inside) + eps log sigmoid(-inside)] / (1 - 2 eps)`.
    """
    eps = terms.label_smoothing
    agree_B, flipped_B = F.logsigmoid(terms.inside_B), F.logsigmoid(-terms.inside_B)
    return (-(1 - eps) * agree_B + eps * flipped_B) / (1 - 2 * eps)


def hinge(terms: PreferenceTerms) -> torch.Tensor:
    """`relu(1 - inside)` (SLiC, https://huggingface.co/papers/2305.10425)."""
    return F.relu(1 - terms.inside_B)


def ipo(terms: PreferenceTerms) -> torch.Tensor:
    """`(gap - 1/(2 beta))^2`, beta in the role of tau (https://huggingface.co/papers/2310.12036, eq. 17)."""
    return (terms.gap_B - 1 / (2 * terms.beta)) ** 2


def sft(terms: PreferenceTerms) -> torch.Tensor:
    """
    Denoising error of the chosen image, in units of the sigmoid loss's own slope where training starts (`beta/4` per
    unit of error), so that a weight of 1 counts as much as the preference.
    """
    return terms.beta / 4 * terms.chosen_error_B


def anchor(terms: PreferenceTerms) -> torch.Tensor:
    """
    Ties the policy's predictions to the reference's where a pair is not about them: `beta/4` times the mean square of what
    they differ by, the unit of `sft`. Unlike a weight of the preference it holds what it is on in place, whatever the images
    show there.
    """
    return terms.beta / 4 * terms.drift_B


LOSSES: dict[str, Callable[[PreferenceTerms], torch.Tensor]] = {
    loss.__name__: loss for loss in (sigmoid, robust, hinge, ipo, sft, anchor)
}


def preference_loss(
    terms: PreferenceTerms, loss_type: Sequence[str], loss_weights: Sequence[float] | None = None
) -> torch.Tensor:
    """
    Weighted sum of the named losses.

    Args:
        terms ([`PreferenceTerms`]):
            Errors of `B` pairs.
        loss_type (`Sequence[str]`):
            Names out of `LOSSES`.
        loss_weights (`Sequence[float]`, *optional*):
            One weight per loss. `None` is 1 for each.

    Returns:
        `torch.Tensor` of shape `(B,)`: the loss of each pair.
    """
    weights = loss_weights or [1.0] * len(loss_type)
    return sum(weight * LOSSES[name](terms) for name, weight in zip(loss_type, weights, strict=True))
