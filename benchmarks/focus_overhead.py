# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What a focus map costs: training steps with `uniform` and `focus` in turn, and their peak memory.

    python -m benchmarks.focus_overhead [--width 512] [--steps 7]
"""

import argparse
import statistics
import tempfile
import time

import torch

from examples.photographs.pipeline import ENCODE_PROMPT_KWARGS, tiny_flux2_klein
from examples.photographs.scenes import make_pairs
from trl_focus import FocusDPOConfig, FocusDPOTrainer

from .memory import Peak, alone


def make(focus_map: str, width: int, folder: str) -> tuple[FocusDPOTrainer, dict]:
    """A trainer of a FLUX.2-shaped model of a hidden `width`, and a batch of one pair with two references."""
    pairs = make_pairs(1, size=(256, 256), reference_size=(128, 128))
    args = FocusDPOConfig(
        output_dir=folder,
        focus_map=focus_map,
        resolution=256,
        encode_prompt_kwargs=ENCODE_PROMPT_KWARGS,
        per_device_train_batch_size=1,
        report_to="none",
    )
    trainer = FocusDPOTrainer(tiny_flux2_klein(hidden_size=width), args=args, train_dataset=pairs)
    return trainer, next(iter(trainer.get_train_dataloader()))


def step(trainer: FocusDPOTrainer, batch: dict) -> float:
    """Seconds of one forward and backward."""
    start = time.perf_counter()
    trainer.compute_loss(trainer.model, batch).backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(focus_map: str, width: int, folder: str) -> float:
    """Peak memory of three steps in MB, the model included."""
    run, memory = make(focus_map, width, folder), Peak()
    for _ in range(3):
        step(*run)
    return memory.read()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: make(name, options.width, folder) for name in ("uniform", "focus")}
        seconds = {name: [] for name in runs}
        for number in range(options.steps + 1):
            for name, run in runs.items():
                taken = step(*run)
                if number:  # the first loads what is loaded on first use
                    seconds[name].append(taken)
        ratios = [focus / uniform for uniform, focus in zip(*seconds.values(), strict=True)]
        megabytes = {name: alone(peak, name, options.width, folder) for name in runs}
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"hidden width {options.width}, {options.steps} pairs of steps, focus / uniform")
    print(
        f"time    {middle:.3f} (quartiles {low:.3f} to {high:.3f})  of {statistics.median(seconds['uniform']):.2f} s"
    )
    print(f"memory  {megabytes['focus'] / megabytes['uniform']:.3f}  of {megabytes['uniform']:.0f} MB")


if __name__ == "__main__":
    main()
