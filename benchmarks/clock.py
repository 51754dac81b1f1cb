# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Seconds of a trainer's steps, and of their parts, which sum to them."""

import time
from collections import defaultdict
from collections.abc import Callable

import torch

from trl_focus import DiffusionDPOTrainer


# Where these run, what else is called belongs to them: the reference's forward, and what checkpointing computes again
WHOLE = ("reference", "backward")
ORDER = ("data", "encoding", "reference", "forward", "maps", "backward", "optimizer", "rest")


def wall() -> float:
    """Seconds of the clock on the wall, when the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def now() -> float:
    """Seconds: on one thread of the CPU those of the processor, which other work on the machine does not lengthen."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else wall()


class Clock:
    """
    Takes a trainer's steps and reads the time.

    Attributes:
        seconds (`dict[str, float]`):
            Of the parts of the steps since the last `clear`, each without those that run within it; `"rest"` is noise, loss,
            metrics, and what no other part claims.

    Args:
        now (`Callable`, *optional*):
            Tells the time.
    """

    def __init__(self, trainer: DiffusionDPOTrainer, now: Callable[[], float] = now):
        self.trainer, self.now = trainer, now
        self.batches = iter(())
        self.seconds: dict[str, float] = defaultdict(float)
        self.running = []
        parts = {
            "_encode": "encoding",
            "_reference_prediction": "reference",
            "_predict": "forward",
            "cell_weights": "maps",
        }
        for method, name in parts.items():
            setattr(trainer, method, self.timed(name, getattr(trainer, method)))
        if tap := getattr(trainer, "_tap", None):
            reading = tap.reading
            tap.reading = lambda reader: reading(self.timed("maps", reader))

    def timed(self, name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            if self.running and self.running[-1] in WHOLE:
                return function(*args, **kwargs)
            self._switch(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch(None)

        return call

    def _switch(self, name: str | None):
        """A part begins within the one that runs, or the one that runs ends."""
        moment = self.now()
        if self.running:
            self.seconds[self.running[-1]] += moment - self.since
        self.since = moment
        self.running.append(name) if name else self.running.pop()

    def next_batch(self) -> dict:
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.trainer.get_train_dataloader())
            batch = next(self.batches)
        return batch

    def step(self) -> float:
        """Takes a step; returns its seconds."""
        start = self.now()
        self.timed("rest", self._step)()
        return self.now() - start

    def _step(self):
        trainer = self.trainer
        batch = self.timed("data", self.next_batch)()
        loss = trainer.compute_loss(trainer.model, batch)
        self.timed("backward", loss.backward)()
        self.timed("optimizer", trainer.optimizer.step)()
        trainer.optimizer.zero_grad()

    def clear(self):
        self.seconds.clear()

    def parts(self) -> dict[str, float]:
        """Shares of the time, in the order of a step."""
        whole = sum(self.seconds.values())
        return {name: self.seconds[name] / whole for name in ORDER if self.seconds.get(name)}
