# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import torch
from accelerate import Accelerator


RATE = 0.05  # a factor that is off by 0.1 moves beta by half a percent a step


class GradientFactorController:
    """
    Moves beta so that the gradient factor, the mean of `sigmoid(-inside)`, stays near a target.

    The factor scales the gradient of the sigmoid loss: 0.5 where training starts, near 0 where the loss is satisfied. A
    factor above the target raises beta, one below lowers it: `log beta += 0.05 * (factor - target)` per update. Beta
    lives on the device, and nothing here waits for it.

    Args:
        beta (`float`):
            Where beta starts.
        target (`float`):
            Wanted gradient factor, in (0, 0.5).
        beta_min, beta_max (`float`):
            Bounds of beta.
        warmup_steps (`int`):
            Updates before beta moves.
        device (`torch.device`):
            Device of the training step.
    """

    def __init__(
        self, beta: float, target: float, beta_min: float, beta_max: float, warmup_steps: int, device: torch.device
    ):
        self.target = target
        self.beta_min = beta_min
        self.beta_max = beta_max
        self.warmup_steps = warmup_steps
        self.steps = 0
        self.beta = torch.tensor(float(beta), device=device)
        self._seen = torch.zeros(2, device=device)  # sum and count of the factor since the last update

    def observe(self, inside_B: torch.Tensor, counts_B: torch.Tensor):
        """Takes in the pairs of one forward; those with an argument that is not finite are left out."""
        inside_B = inside_B.detach().float()
        counts_B = counts_B * inside_B.isfinite()
        self._seen += torch.stack([(torch.sigmoid(-inside_B).nan_to_num() * counts_B).sum(), counts_B.sum()])

    def step(self, accelerator: Accelerator):
        """Moves beta once, by what all processes have observed."""
        total, count = accelerator.reduce(self._seen, reduction="sum")
        self._seen = torch.zeros_like(self._seen)
        self.steps += 1
        if self.steps > self.warmup_steps:
            off_target = torch.where(count > 0, total / count.clamp(min=1) - self.target, 0.0)
            self.beta = (self.beta * torch.exp(RATE * off_target)).clamp(self.beta_min, self.beta_max)

    def state_dict(self) -> dict[str, float | int]:
        """State to save; reads beta from the device."""
        return {"beta": self.beta.item(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, float | int]):
        """Takes back what `state_dict` gave."""
        self.beta = torch.full_like(self.beta, state["beta"])
        self.steps = state["steps"]
