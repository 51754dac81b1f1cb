# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""How much memory something takes at most: of the GPU where there is one, else of the process, for which Linux is asked."""

import ctypes
import gc
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch


# `ru_maxrss` won't do: a process begins with that of the one that started it, and nothing sets it back
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _megabytes(name: str) -> float:
    """A value of the process's status."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def resident() -> float:
    """What is taken now, in MB."""
    return torch.cuda.memory_allocated() / 1e6 if torch.cuda.is_available() else _megabytes("VmRSS")


class Peak:
    """
    Memory from here on.

    Attributes:
        start (`float`):
            What is taken already, in MB.
    """

    def __init__(self):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            RESET.write_text("5")
        self.start = resident()

    def read(self) -> float:
        """The most that was taken at a time since, in MB; `start` is part of it."""
        return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else _megabytes("VmHWM")


def alone(function: Callable, *args) -> Any:
    """
    Calls a function in a process of its own, where what tensors no longer need goes back to the system at once: the process
    is then as large as its tensors, and not as its heap has become.
    """
    with mock.patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536"):
        # Not a `Pool`, whose processes may not start workers that load data
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *args).result()
