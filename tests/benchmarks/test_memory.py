# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import sys

import pytest
import torch

from benchmarks.memory import Peak, alone


MEGABYTES = 1_000_000


def grow(megabytes: int) -> float:
    torch.ones(2 * megabytes * MEGABYTES, dtype=torch.uint8)  # before: not to be counted
    memory = Peak()
    torch.ones(megabytes * MEGABYTES, dtype=torch.uint8)
    return memory.read() - memory.start


@pytest.mark.skipif(torch.cuda.is_available() or sys.platform != "linux", reason="tensors of the CPU, on Linux")
def test_peak_is_what_was_taken_since_whatever_the_processes_took_before():
    held = torch.ones(300 * MEGABYTES, dtype=torch.uint8)
    assert alone(grow, 100) == pytest.approx(100, abs=5)
    del held
