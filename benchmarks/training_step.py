# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What each way to train costs: steps of a model with SDXL's proportions, in turn, their parts, and their peak memory.

    python -m benchmarks.training_step [--width 64] [--resolution 256] [--rounds 7]

`plain` does in each step what the published Diffusion-DPO scripts do: the VAE and the text encoders, and a pass of the
reference. The others leave out one after another of these.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from examples.photographs.scenes import make_pairs
from trl_focus import DiffusionDPOConfig, DiffusionDPOTrainer

from .sdxl import sdxl
from .steady_memory import resident


WAYS = {
    "plain": {"encode_once": False},
    "encoded once": {},
    "encoded once, reference precomputed": {"precompute_ref_errors": 1},
    "encoded once, channels last": {"channels_last": True},
}
ONLY_MEMORY = {
    "encoded once, one forward for each image": {"one_forward": False},
    "encoded once, checkpointing": {"gradient_checkpointing": True},
    "encoded once, checkpointing, one forward for each image": {"gradient_checkpointing": True, "one_forward": False},
}


def make(width: int, resolution: int, folder: str, **settings) -> DiffusionDPOTrainer:
    pairs = make_pairs(4, size=(resolution, resolution))
    pairs = pairs.remove_columns([name for name in pairs.column_names if name.startswith("reference")])
    args = DiffusionDPOConfig(
        output_dir=folder,
        resolution=resolution,
        per_device_train_batch_size=1,
        report_to="none",
        **{"gradient_checkpointing": False, **settings},
    )
    trainer = DiffusionDPOTrainer(sdxl(width), args=args, train_dataset=pairs)
    trainer.create_optimizer()
    trainer.model.train()
    return trainer


class Clock:
    """Seconds of the parts of a trainer's steps."""

    def __init__(self, trainer: DiffusionDPOTrainer):
        self.trainer = trainer
        self.batches = iter(())
        self.seconds: dict[str, float] = defaultdict(float)
        for name, method in (("encoding", "_encode"), ("reference", "_reference_error")):
            setattr(trainer, method, self.timed(name, getattr(trainer, method)))

    def timed(self, name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            start = time.perf_counter()
            value = function(*args, **kwargs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds[name] += time.perf_counter() - start
            return value

        return call

    def next_batch(self) -> dict:
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.trainer.get_train_dataloader())
            batch = next(self.batches)
        return batch

    def step(self) -> float:
        """Takes a step; returns its seconds."""
        trainer, start = self.trainer, time.perf_counter()
        batch = self.timed("data", self.next_batch)()
        loss = self.timed("forward", trainer.compute_loss)(trainer.model, batch)
        self.timed("backward", loss.backward)()
        self.timed("optimizer", trainer.optimizer.step)()
        trainer.optimizer.zero_grad()
        return time.perf_counter() - start

    def parts(self) -> dict[str, float]:
        """Shares of the time; those of the forward are told apart."""
        inner = {name: self.seconds[name] for name in ("encoding", "reference")}
        parts = {**self.seconds, **inner, "forward": self.seconds["forward"] - sum(inner.values())}
        whole = sum(parts.values())
        return {name: seconds / whole for name, seconds in sorted(parts.items())}


def floating_operations(trainer: DiffusionDPOTrainer) -> float:
    """Operations of a step, by count."""
    batch = next(iter(trainer.get_train_dataloader()))
    with FlopCounterMode(display=False) as counter:
        trainer.compute_loss(trainer.model, batch).backward()
    trainer.optimizer.zero_grad()
    return counter.get_total_flops()


def peak(width: int, resolution: int, settings: dict) -> float:
    """Peak memory in MB of three steps, in a process of its own: that of the GPU where there is one."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(make(width, resolution, folder, **settings))
        before = resident()
        Path("/proc/self/clear_refs").write_text("5")  # making the trainer may have taken more than a step does
        for _ in range(3):
            clock.step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--width", type=int, default=64, help="channels of the UNet's first level; SDXL has 320")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    shape = options.width, options.resolution
    with tempfile.TemporaryDirectory() as folder:
        clocks = {name: Clock(make(*shape, folder, **settings)) for name, settings in WAYS.items()}
        operations = {name: floating_operations(clock.trainer) for name, clock in clocks.items()}
        seconds = defaultdict(list)
        for number in range(options.rounds + 1):
            for name, clock in clocks.items():
                taken = clock.step()
                if number:  # the first loads what is loaded on first use
                    seconds[name].append(taken)
                else:
                    clock.seconds.clear()
    print(f"width {options.width}, {options.resolution}x{options.resolution}, {options.rounds} rounds\n")
    print(
        "| way | steps per second, against plain (quartiles) | by count of operations | time |\n" + "| --- " * 4 + "|"
    )
    for name, clock in clocks.items():
        ratios = [plain / taken for plain, taken in zip(seconds["plain"], seconds[name], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        parts = ", ".join(f"{part} {share:.0%}" for part, share in clock.parts().items())
        bound = operations["plain"] / operations[name]
        print(f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {bound:.2f} | {parts} |")
    print("\n| way | peak memory of the steps, against plain |\n| --- | --- |")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        used = {name: pool.apply(peak, (*shape, settings)) for name, settings in {**WAYS, **ONLY_MEMORY}.items()}
    for name, megabytes in used.items():
        print(f"| {name} | {megabytes / used['plain']:.2f} |")
    print(f"\nplain: {statistics.median(seconds['plain']):.2f} s a step, {used['plain']:.0f} MB")


if __name__ == "__main__":
    main()
