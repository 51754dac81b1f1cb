# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import math

import pytest
import torch
from accelerate import Accelerator

from trl_focus.trainer.metrics import DeviceMeans


ONE = Accelerator(cpu=True)


class Recorder:
    """Stands for one of two processes: adds what the other one gave."""

    def __init__(self, other=0):
        self.other = other

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        self.given = tensor
        return tensor + self.other


def ones(value_B):
    return torch.ones(len(value_B))


def test_mean_over_unequal_batches_is_exact():
    means = DeviceMeans()
    values = torch.arange(10.0)
    for batch in values.split([1, 4, 5]):
        means.add("a", batch, ones(batch))
        means.add("b", -batch, ones(batch))
    assert means.pop(ONE) == {"a": 4.5, "b": -4.5}


@pytest.mark.parametrize("bad", [1e6, math.nan, math.inf])
def test_pairs_that_do_not_count_are_left_out(bad):
    means = DeviceMeans()
    means.add("a", torch.tensor([1.0, bad, 3.0]), torch.tensor([1, 0, 1]))
    means.add("a", torch.tensor([bad, 8.0]), torch.tensor([0.0, 1.0]))
    assert means.pop(ONE) == {"a": 4.0}


def test_pairs_that_count_are_not_hidden():
    means = DeviceMeans()
    means.add("a", torch.tensor([1.0, math.nan]), torch.ones(2))
    assert math.isnan(means.pop(ONE)["a"])


def test_names_to_which_no_pair_counted_are_left_out():
    means = DeviceMeans()
    means.add("none", torch.tensor([1.0, math.nan]), torch.zeros(2))
    means.add("zero", torch.zeros(2), torch.ones(2))
    assert means.pop(ONE) == {"zero": 0.0}


def test_pop_starts_anew():
    means = DeviceMeans()
    assert means.pop(ONE) == {}
    means.add("a", torch.tensor([1.0]), torch.ones(1))
    assert means.pop(ONE) == {"a": 1.0}
    assert means.pop(ONE) == {}
    means.add("a", torch.tensor([5.0]), torch.ones(1))
    assert means.pop(ONE) == {"a": 5.0}


def test_mean_over_processes_weighs_pairs_and_not_processes():
    first, second = DeviceMeans(), DeviceMeans()
    first.add("a", torch.tensor([1.0]), torch.ones(1))
    first.add("b", torch.tensor([1.0]), torch.zeros(1))
    second.add("a", torch.tensor([2.0, 3.0, 6.0]), torch.tensor([1, 1, 1]))
    second.add("b", torch.tensor([7.0, 1.0, 1.0]), torch.tensor([1, 0, 0]))
    recorder = Recorder()
    first.pop(recorder)
    assert second.pop(Recorder(recorder.given)) == {"a": 3.0, "b": 7.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int64])
def test_sums_are_fp32_and_hold_no_graph(dtype):
    means = DeviceMeans()
    for _ in range(600):  # beyond 256, bf16 can't count by 1
        means.add("a", torch.ones(1, dtype=dtype), torch.ones(1, dtype=dtype))
    value_B = torch.ones(1, requires_grad=True)
    means.add("a", value_B * 602, torch.ones(1))
    recorder = Recorder()
    assert means.pop(recorder) == {"a": 2.0}
    assert not recorder.given.requires_grad
