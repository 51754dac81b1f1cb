# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Offloaded blocks train as others do, with one block's weights on the device at a time."""

import weakref
from functools import cache

import pytest
import torch

from tests.fixtures.trainers import gradients_of
from trl_focus.trainer import offload


class Device:
    """
    The CPU, taken for a device apart from the host: what is on it is NaN for whoever reads it later than it was there, and what
    rests on the host is NaN for whoever reads it there.
    """

    def __init__(self, monkeypatch):
        self.resting, self.live, self.peak, self.brought = {}, {}, 0, []
        take, clear = offload._Block.__init__, offload._Place.clear

        def taken(block, *args):
            take(block, *args)
            self.block_of = {**getattr(self, "block_of", {}), **{id(weight): block for weight in block.weights}}
            for weight in block.weights:
                content, weight.data = weight.data, torch.full_like(weight, torch.nan)
                self.resting[weight.data_ptr()] = content, block

        def cleared(place):
            for weight in getattr(place, "weights", []):
                weight.fill_(torch.nan)
            clear(place)

        monkeypatch.setattr(offload._Block, "__init__", taken)
        monkeypatch.setattr(offload._Place, "clear", cleared)
        monkeypatch.setattr(offload, "copied", self.copied)

    def copied(self, weight: torch.Tensor, device: torch.device) -> torch.Tensor:
        content, block = self.resting[weight.data_ptr()]
        copy = content.clone()
        self.live[id(copy)] = block
        weakref.finalize(copy.untyped_storage(), self.live.pop, id(copy))
        self.peak = max(self.peak, len({*map(id, self.live.values())}))
        if not self.brought or self.brought[-1] is not block:
            self.brought.append(block)
        return copy


@pytest.fixture
def device(monkeypatch):
    return Device(monkeypatch)


@pytest.mark.parametrize("family", ["flux2_klein", "sdxl"])
@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "keeping"])
@pytest.mark.parametrize("one_forward", [True, False], ids=["one_forward", "two_forwards"])
@pytest.mark.parametrize("draws", [0, 1], ids=["live", "precomputed"])
def test_gradients(tmp_path, device, family, checkpointing, one_forward, draws):
    settings = {"gradient_checkpointing": checkpointing, "one_forward": one_forward, "precompute_ref_errors": draws}
    plain = gradients_of(tmp_path / "plain", family, **settings)
    other = gradients_of(tmp_path / "offloaded", family, offload_blocks=True, **settings)
    for k in plain: assert torch.equal(plain[k], other[k]), k
    print(len(device.brought), device.peak, len({*map(id, device.brought)}))
