# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import torch
from transformers import TrainerCallback
from transformers.utils import logging


logger = logging.get_logger(__name__)


class FocusMapCallback(TrainerCallback):
    """
    Base of callbacks that see the focus maps, and may change them, before they weight the error.
    """

    def on_focus_maps(
        self, args, state, control, focus_maps: dict[str, torch.Tensor], batch: dict, **kwargs
    ) -> dict[str, torch.Tensor] | None:
        """
        Event called by [`FocusDPOTrainer`] in every forward of training and evaluation.

        Args:
            focus_maps (`dict[str, torch.Tensor]`):
                Detached maps of shape `(2B, H, W)` on the token grid, the B chosen images first: `"weights"`, and the parts
                it was made of by their names.
            batch (`dict`):
                The collated batch, and `"level"`, the noise level of each of the 2B images in [0, 1].

        Returns:
            `None` to leave them, or a dictionary of those that are to be replaced. Only `"weights"` is used: it must keep
            its shape (checked at once), and be finite and at least 0 (reported at the next logging step).
        """


class PreferenceCollapseCallback(TrainerCallback):
    """
    Warns, or stops training, when the policy wins by ruining images: the accuracy does not fall, and yet the error on the
    *chosen* images rises above the reference's. It is how runs end in noise while their margins still grow.

    Args:
        patience (`int`, *optional*, defaults to `3`):
            Number of successive logs with a rising chosen error before it speaks.
        stop (`bool`, *optional*, defaults to `False`):
            Whether to stop training instead of only warning.
    """

    def __init__(self, patience: int = 3, stop: bool = False):
        self.patience = patience
        self.stop = stop
        self._rises = 0
        self._last: tuple[float, float] | None = None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "errors/chosen" not in logs or "rewards/accuracies" not in logs:
            return
        error, accuracy = logs["errors/chosen"], logs["rewards/accuracies"]
        if self._last is not None:
            collapsing = error > max(0.0, self._last[0]) and accuracy >= max(0.5, self._last[1])
            self._rises = self._rises + 1 if collapsing else 0
        self._last = error, accuracy
        if self._rises >= self.patience:
            self._rises = 0
            logger.warning(
                f"Step {state.global_step}: the policy's error on chosen images rose above the reference's for "
                f"{self.patience} logs in a row (by {error:.2e} now) while its accuracy is {accuracy:.2f}: it wins by "
                "getting worse. Add 'sft' to `loss_type`, set `rejected_error_bound` (0.01), raise `beta`, or lower "
                "`learning_rate`."
            )
            if self.stop:
                control.should_training_stop = True
