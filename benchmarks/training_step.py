# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What each way to train costs: steps of a model with SDXL's proportions, in turn, their parts, and their peak memory.

    python -m benchmarks.training_step [--width 64] [--resolution 256] [--rounds 7] [--compile]

`plain` does in each step what the published Diffusion-DPO scripts do: the VAE and the text encoders, and a pass of the
reference. The others leave out one after another of these.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from examples.photographs.scenes import make_pairs
from trl_focus import DiffusionDPOConfig, DiffusionDPOTrainer

from .memory import Peak, alone
from .sdxl import sdxl


WAYS = {
    "plain": {"encode_once": False},
    "encoded once": {},
    "encoded once, reference precomputed": {"precompute_ref_errors": 1},
    "encoded once, channels last": {"channels_last": True},
}
COMPILED = {f"{name}, compiled": {**WAYS[name], "torch_compile": True} for name in [*WAYS][1:3]}
ONLY_MEMORY = {
    "encoded once, one forward for each image": {"one_forward": False},
    "encoded once, checkpointing": {"gradient_checkpointing": True},
    "encoded once, checkpointing, one forward for each image": {"gradient_checkpointing": True, "one_forward": False},
}


def make(width: int, resolution: int, folder: str, n_pairs: int = 4, **settings) -> DiffusionDPOTrainer:
    pairs = make_pairs(n_pairs, size=(resolution, resolution))
    pairs = pairs.remove_columns([name for name in pairs.column_names if name.startswith("reference")])
    args = DiffusionDPOConfig(
        output_dir=folder,
        resolution=resolution,
        per_device_train_batch_size=1,
        report_to="none",
        **{"gradient_checkpointing": False, **settings},
    )
    trainer = DiffusionDPOTrainer(sdxl(width), args=args, train_dataset=pairs)
    # What `train` does before its first step
    trainer.create_optimizer()
    if settings.get("gradient_checkpointing"):
        trainer.model.gradient_checkpointing_enable()
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


def waiting(width: int, resolution: int, folder: str, steps: int) -> float:
    """Share of the time that steps wait for one worker to load what was encoded; these are the shortest steps."""
    settings = WAYS["encoded once, reference precomputed"]
    clock = Clock(make(width, resolution, folder, steps + 1, dataloader_num_workers=1, **settings))
    clock.step()  # the worker starts
    clock.seconds.clear()
    for _ in range(steps):
        clock.step()
    return clock.parts()["data"]


def peak(width: int, resolution: int, settings: dict) -> float:
    """What three steps take at most, in MB: all of it on a GPU, else what comes on top of the loaded process."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(make(width, resolution, folder, **settings))
        clock.next_batch()  # computes the reference's errors, where they are computed before training
        memory = Peak()
        for _ in range(3):
            clock.step()
    return memory.read() - (0 if torch.cuda.is_available() else memory.start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--width", type=int, default=64, help="channels of the UNet's first level; SDXL has 320")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="take compiled steps too; compiling takes minutes")
    options = parser.parse_args()
    ways = {**WAYS, **(COMPILED if options.compile else {})}
    shape = options.width, options.resolution
    with tempfile.TemporaryDirectory() as folder:
        clocks = {name: Clock(make(*shape, folder, **settings)) for name, settings in ways.items()}
        operations = {name: floating_operations(clocks[name].trainer) for name in WAYS}
        seconds = defaultdict(list)
        for number in range(options.rounds + 1):
            for name, clock in clocks.items():
                taken = clock.step()
                if number:  # the first loads what is loaded on first use
                    seconds[name].append(taken)
                else:
                    clock.seconds.clear()
        waited = waiting(*shape, folder, options.rounds)
    print(f"width {options.width}, {options.resolution}x{options.resolution}, {options.rounds} rounds\n")
    print(
        "| way | steps per second, against plain (quartiles) | by count of operations | time |\n" + "| --- " * 4 + "|"
    )
    for name, clock in clocks.items():
        ratios = [plain / taken for plain, taken in zip(seconds["plain"], seconds[name], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        parts = ", ".join(f"{part} {share:.0%}" for part, share in clock.parts().items())
        bound = operations["plain"] / operations[name.removesuffix(", compiled")]
        print(f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {bound:.2f} | {parts} |")
    print(f"\nwaiting for one worker, reference precomputed: {waited:.1%} of the time")
    print("\n| way | peak memory of the steps, against plain |\n| --- | --- |")
    used = {name: alone(peak, *shape, settings) for name, settings in {**ways, **ONLY_MEMORY}.items()}
    for name, megabytes in used.items():
        print(f"| {name} | {megabytes / used['plain']:.2f} |")
    print(f"\nplain: {statistics.median(seconds['plain']):.2f} s a step, {used['plain']:.0f} MB")


if __name__ == "__main__":
    main()
