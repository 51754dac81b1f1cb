# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Will focus help on this data? An answer from gradients, before anything is trained.

Preference data teaches through the gradient of `sum_p W(p) (e_w(p) - e_l(p))`. What chosen and rejected have in common
cancels in it; what differs outside the subjects stays, and is noise, or a shortcut. So weights can help only where the
gradient of one half of the data, weighted by them, points more to where the subjects of the *other* half ask for than the
plain gradient does. Its own other half would not do: a shortcut is consistent, too.
"""

from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F

from ..focus.maps import FOCUS_MAPS, prior, with_prior
from ..losses import mean_error
from ..noise import denoising_error, noised_at
from .focus_dpo_trainer import FocusDPOTrainer


LEVELS = (0.125, 0.375, 0.625, 0.875)  # the middle of each quarter
# In a toy world pairs that differ in their subjects alone gained 0.00, and those where focus lifted identity 0.24 and more
WORTH = 0.1


@dataclass
class FocusDiagnostic:
    """
    What [`focus_diagnostic`] found.

    Attributes:
        alignment (`dict[str, list[float]]`):
            By weighting, for each of `levels`: cosine in [-1, 1] of its gradient on one half of the data with the
            subject-only gradient of the other half.
        outside (`list[float]`):
            For each of `levels`, the share in [0, 1] of the pairs' difference in error that lies outside the subjects.
        levels (`tuple[float, ...]`):
            Noise levels in [0, 1].
    """

    alignment: dict[str, list[float]]
    outside: list[float]
    levels: tuple[float, ...] = LEVELS

    def mean(self, weighting: str) -> float:
        """Alignment of a weighting, over the levels."""
        return sum(self.alignment[weighting]) / len(self.levels)

    @property
    def best(self) -> str:
        """The weighting with the largest alignment."""
        return max(self.alignment, key=self.mean)

    @property
    def advice(self) -> str:
        """One sentence."""
        gain, outside = self.mean(self.best) - self.mean("uniform"), sum(self.outside) / len(self.levels)
        if gain >= WORTH:
            return (
                f"Use {self.best!r}: its gradient points {gain:+.2f} better to what the subjects ask for than plain DPO's, and "
                f"{outside:.0%} of what tells chosen from rejected lies outside the subjects."
            )
        if max(map(self.mean, self.alignment)) < WORTH:
            return "Hardly any weighting finds a common direction: give more batches, or look whether masks and labels fit."
        return (
            f"Plain DPO will do about as well: the best weighting, {self.best!r}, gains {gain:+.2f}. {outside:.0%} of what "
            "tells chosen from rejected lies outside the subjects."
        )

    def __str__(self) -> str:
        width = max(map(len, [*self.alignment, "outside subjects"]))
        rows = [("noise level", self.levels), *self.alignment.items(), ("outside subjects", self.outside)]
        lines = [f"{name:<{width}} " + " ".join(f"{value:6.3f}" for value in values) for name, values in rows]
        return "\n".join([*lines, self.advice])


def focus_diagnostic(trainer: FocusDPOTrainer, n_batches: int = 8) -> FocusDiagnostic:
    """
    Compares weightings by their gradients on the trainer's data, without training.

    For each noise level it runs the policy over the batches once, and backwards once per weighting: `uniform`, `mask`, the
    trainer's own map, and the subjects alone. Meanwhile it holds two gradients of the LoRA per weighting.

    Args:
        trainer ([`FocusDPOTrainer`]):
            A trainer that has not trained; its data must have masks, or its `focus_prior` find them. Training afterwards goes
            as if this had not been called.
        n_batches (`int`, *optional*, defaults to `8`):
            Batches of the training data that are looked at, an even number of at least 2.

    Returns:
        [`FocusDiagnostic`]: A table and an advice; `print` shows them.

    Raises:
        ValueError: If `n_batches` is odd or less than 2, there are not as many batches, or images have no subjects.
    """
    if n_batches < 2 or n_batches % 2:
        raise ValueError(f"`n_batches` is {n_batches}; the data is compared in halves, so give an even number.")
    batches = list(islice(trainer.get_train_dataloader(), n_batches))
    if len(batches) < n_batches:
        raise ValueError(f"The data has {len(batches)} batches, and `n_batches` is {n_batches}.")
    alignment, outside = {}, []
    for level in LEVELS:
        gradients = [_Gradients(), _Gradients()]
        for number, batch in enumerate(batches):
            gradients[number % 2].add(trainer, batch, level)
        one, other = gradients
        for name in one.sums:
            if name != "subjects":
                cosines = [_cosine(x.sums[name], y.sums["subjects"]) for x, y in ((one, other), (other, one))]
                alignment.setdefault(name, []).append(sum(cosines) / 2)
        outside.append(((one.outside + other.outside) / (one.difference + other.difference)).item())
    return FocusDiagnostic(alignment, outside)


class _Gradients:
    """Sums of gradients by weighting, and of the pairs' differences, over the batches of one half."""

    def __init__(self):
        self.sums: dict[str, list[torch.Tensor]] = {}
        self.outside = self.difference = 0

    def add(self, trainer: FocusDPOTrainer, batch: dict, level: float):
        error_BHW, weightings = _errors_and_weightings(trainer, batch, level)
        parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        for name, weights_BHW in weightings.items():
            chosen_B, rejected_B = mean_error(error_BHW, weights_BHW).chunk(2)
            loss = ((chosen_B - rejected_B) * batch["counts"]).sum()
            gradient = torch.autograd.grad(loss, parameters, retain_graph=True)
            self.sums[name] = [a + b for a, b in zip(self.sums.get(name, [0] * len(gradient)), gradient, strict=True)]
        subjects_BHW = torch.stack(weightings["subjects"].chunk(2)).amax(dim=0)
        chosen_BHW, rejected_BHW = error_BHW.detach().chunk(2)
        difference_BHW = (chosen_BHW - rejected_BHW).abs()
        self.difference = self.difference + difference_BHW.sum()
        self.outside = self.outside + (difference_BHW * (1 - subjects_BHW)).sum()


def _errors_and_weightings(
    trainer: FocusDPOTrainer, batch: dict, level: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x_BCHW, prompt, references = trainer._encode(batch)
    noised = noised_at(trainer.family.process, x_BCHW, batch["seed"], level)
    with trainer.watch(batch, noised, prompt, references) as seen, trainer._autocast():
        prediction_BCHW = trainer.family.predict(
            trainer.model, noised.noisy_BCHW, noised.timestep_B, prompt, references
        )
    error_BHW = denoising_error(prediction_BCHW, noised.target_BCHW)
    settings = trainer._focus_settings
    context = trainer._focus_context(batch, noised.level_B, tuple(error_BHW.shape[-2:]), seen)
    subjects_BHW = prior(with_prior(context, settings))
    if not (subjects_BHW > 0).any():
        raise ValueError(f"Rows {batch['row']} have no subjects: all their masks are empty.")
    weightings = {name: FOCUS_MAPS[name](context, settings)["weights"] for name in ("uniform", "mask")}
    in_force = "own map" if trainer._own_map else trainer.args.focus_map
    weightings[in_force] = trainer.focus_map(context)["weights"]
    return error_BHW, {**weightings, "subjects": subjects_BHW}


def _cosine(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    vectors = [torch.cat([part.flatten().float() for part in parts]) for parts in (one, other)]
    return F.cosine_similarity(*vectors, dim=0).item()
