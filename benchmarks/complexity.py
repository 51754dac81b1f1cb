# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Time and memory of the complexity map on one core: `python -m benchmarks.complexity`."""

import multiprocessing
import resource
import sys
import time

import torch

from trl_focus.focus.complexity import complexity


def peak_mb() -> float:
    """Most resident memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def measure(size: int, repeats: int = 5) -> tuple[float, float]:
    """
    Measures one image of `size` x `size` pixels. To be called in a process of its own: a peak does not come down.

    Returns:
        `tuple[float, float]`: seconds of processor time of the fastest of the repeats, and MB of memory on top of libraries and image.
    """
    torch.set_num_threads(1)
    pixels_BCHW = torch.randint(256, (1, 3, size, size), dtype=torch.uint8)
    complexity(pixels_BCHW[..., :64, :64], 16)  # loads what is loaded on first use
    before, seconds = peak_mb(), []
    for _ in range(repeats):
        start = time.process_time()
        complexity(pixels_BCHW, 16)
        seconds.append(time.process_time() - start)
    return min(seconds), peak_mb() - before


def measure_alone(size: int) -> tuple[float, float]:
    """`measure` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (size,))


if __name__ == "__main__":
    for size in (512, 1024):
        seconds, megabytes = measure_alone(size)
        print(f"{size:4d} x {size:<4d}  {seconds:.3f} s  {megabytes:.0f} MB")
