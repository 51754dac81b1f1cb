# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..callbacks.progress import closed_on_error
from ..losses import PreferenceTerms, mean_error
from ..noise import Noised
from .metrics import DeviceMeans


if TYPE_CHECKING:
    from .diffusion_dpo_trainer import CellWeights


LEVEL_BINS = [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]


class ObserveMixin:
    """
    What a trainer sees of its training: metrics of pairs, which stay on the device until they are logged, and the alarm for
    what is not finite.
    """

    @property
    def _means(self) -> DeviceMeans:
        return self._metrics["train" if self.model.training else "eval"]

    def _add_by_level(self, name: str, values_B: torch.Tensor, counts_B: torch.Tensor, level_B: torch.Tensor):
        """Adds a metric for each quarter of the noise levels."""
        for low, high in LEVEL_BINS:
            inside_B = (level_B >= low) & ((level_B < high) | (high == 1.0))
            self._means.add(f"{name}/level_{low:.2f}-{high:.2f}", values_B, counts_B * inside_B)

    @torch.no_grad()
    def _observe(
        self,
        inputs: dict[str, Any],
        noised: Noised,
        terms: PreferenceTerms,
        loss_B: torch.Tensor,
        change_BHW: torch.Tensor,
        weights: "CellWeights",
    ):
        """Adds a batch to the metrics, the alarm and the controller, on the device."""
        counts_B, inside_B = inputs["counts"], terms.inside_B
        chosen_B, rejected_B = (-0.5 * terms.beta * mean_error(change_BHW, weights.preference_BHW)).chunk(2)
        add = partial(self._means.add, counts_B=counts_B)
        add("rewards/chosen", chosen_B)
        add("rewards/rejected", rejected_B)
        add("rewards/margins", chosen_B - rejected_B)
        add("rewards/accuracies", (chosen_B > rejected_B) + 0.5 * (chosen_B == rejected_B))
        for name, change_B in zip(("chosen", "rejected"), mean_error(change_BHW).chunk(2), strict=True):
            add(f"errors/{name}", change_B)
        if terms.drift_B is not None:
            add("drift", terms.drift_B)
        add("gradient_factor", torch.sigmoid(-inside_B))
        self._add_by_level("rewards/margins", chosen_B - rejected_B, counts_B, noised.level_B.chunk(2)[0])
        if not self.model.training:
            add("loss", loss_B)
            return
        self._alarm.observe(self.state.global_step + 1, inputs["row"], loss_B, counts_B)
        if self.beta_controller is not None:
            self.beta_controller.observe(inside_B, counts_B)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Creates the optimizer, whose updates are skipped where a gradient is not finite."""
        optimizer = super().create_optimizer(*(() if model is None else (model,)))
        inner = getattr(
            optimizer, "optimizer", optimizer
        )  # a second `train` comes with the one that accelerate wrapped
        if not getattr(inner, "_guarded", False):
            self._alarm.updates.attach(inner)
            inner._guarded = True
        return optimizer

    def check_finite(self):
        """
        Looks whether a loss or an update since the last look was not finite. Waits for the device; every process calls it.

        Raises:
            FloatingPointError: If so; the message names the rows.
        """
        self._alarm.check(self.accelerator, self.args.output_dir)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Adds a batch to the metrics of the evaluation; `evaluation_loop` reads them, the loss included."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            self.compute_loss(model, inputs)
        return None, None, None

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        with closed_on_error(self.callback_handler.callbacks):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            self.check_finite()
        means = self._metrics["eval"].pop(self.accelerator)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Logs, and at the logs of training reads what has gathered on the device."""
        if "loss" in logs or "train_loss" in logs:
            self.check_finite()
        if "loss" in logs:
            logs.update(self._metrics["train"].pop(self.accelerator))
            if self.beta_controller is not None:
                logs["beta"] = self.beta.item()
        super().log(logs, start_time)
