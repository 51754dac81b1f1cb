# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections import deque
from statistics import fmean

from transformers import TrainerCallback
from transformers.utils import logging


logger = logging.get_logger(__name__)


class PreferenceCollapseCallback(TrainerCallback):
    """
    Warns, or stops training, when the policy wins by ruining images: its error on the *chosen* images lies above the
    reference's and rises, and yet its accuracy does not fall. It is how runs end in noise while their margins still grow.

    It compares the means of the last `patience` logs with those of as many before, since single logs are noisy.

    Args:
        patience (`int`, *optional*, defaults to `8`):
            Number of logs to average; it speaks after twice as many at the earliest.
        stop (`bool`, *optional*, defaults to `False`):
            Whether to stop training instead of only warning.
    """

    def __init__(self, patience: int = 8, stop: bool = False):
        self.patience = patience
        self.stop = stop
        self._logs: deque[tuple[float, float]] = deque(maxlen=2 * patience)  # chosen error, accuracy

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "errors/chosen" not in logs or "rewards/accuracies" not in logs:
            return
        self._logs.append((logs["errors/chosen"], logs["rewards/accuracies"]))
        if len(self._logs) < 2 * self.patience:
            return
        errors, accuracies = zip(*self._logs, strict=True)
        (old_error, error), (old_accuracy, accuracy) = (
            (fmean(values[: self.patience]), fmean(values[self.patience :])) for values in (errors, accuracies)
        )
        if min(errors[self.patience :]) > 0 and error > old_error and accuracy >= max(0.5, old_accuracy):
            self._logs.clear()
            logger.warning(
                f"Step {state.global_step}: over the last {self.patience} logs the policy's error on chosen images was "
                f"{error:.2e} above the reference's, and rose, while its accuracy is {accuracy:.2f}: it wins by getting worse. "
                "Add 'sft' to `loss_type`, set `rejected_error_bound` (0.01), raise `beta`, or lower `learning_rate`."
            )
            if self.stop:
                control.should_training_stop = True
