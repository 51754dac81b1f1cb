# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import has_length


IN_BAR = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
IN_LINES = (*IN_BAR, "errors/chosen")


def log_line(logs: dict[str, Any], state) -> str:
    """A log in one line, by the metrics' own names; those that are parts of others are left to the trackers."""
    shown = {key: value for key, value in logs.items() if "/" not in key or key.endswith(IN_LINES)}
    shown = {key: value for key, value in shown.items() if key not in ("epoch", "total_flos")}
    values = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()]
    epoch = f" (epoch {logs['epoch']:.4g})" if isinstance(logs.get("epoch"), float) else ""
    return f"step {state.global_step}/{state.max_steps}{epoch}: {', '.join(values)}"


def _write(line: str):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class LogLinesCallback(PrinterCallback):
    """Prints every log as a line."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            _write(log_line(logs, state))


class ProgressBarCallback(ProgressCallback):
    """
    Shows a bar with the latest loss, accuracy and margin where stderr is a terminal; where it is none, prints every log as a
    line. Evaluations are printed in any case, and all logs where stdout leads elsewhere.
    """

    def __init__(self):
        super().__init__()
        self._progress: Progress | None = None
        self._trains = False
        self._evaluation = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.close()
            self._trains = True
            if self._open():
                self._training = self._progress.add_task(
                    "training", total=state.max_steps, completed=state.global_step, metrics=""
                )

    def on_step_end(self, args, state, control, **kwargs):
        if self._trains and self._progress is not None:
            self._progress.update(self._training, completed=state.global_step)

    def on_prediction_step(self, args, state, control, eval_dataloader: DataLoader | None = None, **kwargs):
        if not state.is_world_process_zero or (self._progress is None and not self._open()):
            return
        if self._evaluation is None:
            total = len(eval_dataloader) if has_length(eval_dataloader) else None
            self._evaluation = self._progress.add_task("evaluation", total=total, metrics="")
        self._progress.advance(self._evaluation)

    def on_evaluate(self, args, state, control, **kwargs):
        if self._evaluation is not None:
            self._progress.remove_task(self._evaluation)
            self._evaluation = None
        if not self._trains:
            self.close()

    on_predict = on_evaluate

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        if self._trains and self._progress is not None and "loss" in logs:
            values = [f"{name} {logs[key]:.3g}" for key, name in IN_BAR.items() if key in logs]
            self._progress.update(self._training, metrics="  ".join(values))
            if sys.stdout.isatty():
                return
        _write(log_line(logs, state))

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self):
        """Gives the terminal back."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._evaluation, self._trains = None, None, False

    def _open(self) -> bool:
        console = Console(stderr=True)
        # asked of the stream: rich takes variables like FORCE_COLOR for a terminal, and a log file should hold plain text
        if not sys.stderr.isatty() or console.is_dumb_terminal:
            return False
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            refresh_per_second=4,
            speed_estimate_period=600,  # a step may take longer than the default of 30 seconds
            redirect_stdout=sys.stdout.isatty(),  # else what is printed into a file would go to the terminal
        )
        self._progress.start()
        return True


def show_progress(trainer):
    """Puts these callbacks in the places of transformers' own, of which they are subclasses."""
    ours = {PrinterCallback: LogLinesCallback, ProgressCallback: ProgressBarCallback}
    callbacks = trainer.callback_handler.callbacks
    callbacks[:] = [ours[type(callback)]() if type(callback) in ours else callback for callback in callbacks]


@contextmanager
def closed_on_error(callbacks: Iterable[TrainerCallback]) -> Iterator[None]:
    """Within it an error, or Ctrl-C, leaves no bar behind: a bar hides the cursor."""
    try:
        yield
    except BaseException:
        for callback in callbacks:
            if isinstance(callback, ProgressBarCallback):
                callback.close()
        raise
