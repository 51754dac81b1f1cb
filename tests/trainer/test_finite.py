# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
from accelerate import Accelerator
from transformers import Adafactor

from trl_focus.trainer.finite import FiniteAlarm, FiniteUpdates


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "sgd momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, foreach=False),
    "adamw foreach": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw fused": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, fused=True),
    "adamw amsgrad": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw 8bit": partial(bnb.optim.AdamW8bit, lr=0.01, weight_decay=0.1),
    "lion 8bit": partial(bnb.optim.Lion8bit, lr=0.01, weight_decay=0.1),
    "adafactor": partial(Adafactor, lr=0.01, relative_step=False, scale_parameter=False, weight_decay=0.1),
}
SHAPES = [(64, 128), (3,), (5000,), (1,)]  # the first and the third are large enough for 8 bits
BAD = [float("nan"), float("inf"), -float("inf")]


class Training:
    """Parameters in two groups, one of them without a gradient, and an optimizer."""

    def __init__(self, name, guarded=True):
        generator = torch.Generator().manual_seed(0)
        self.parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
        self.unused = torch.nn.Parameter(torch.ones(3))
        groups = [
            {"params": self.parameters[:2]},
            {"params": [*self.parameters[2:], self.unused], "weight_decay": 0.0},
        ]
        self.optimizer = OPTIMIZERS[name](groups)
        self.guard = FiniteUpdates()
        if guarded:
            self.guard.attach(self.optimizer)

    def update(self, step, bad=None, place=0):
        generator = torch.Generator().manual_seed(step + 1)
        for parameter in self.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        if bad is not None:
            self.parameters[place].grad.view(-1)[-1] = bad
        self.optimizer.step()
        self.optimizer.zero_grad()

    def values(self):
        return [parameter.detach().clone() for parameter in [*self.parameters, self.unused]]

    def states(self):
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        return [value for value in state if isinstance(value, torch.Tensor) and value.is_floating_point()]


def same(values, others):
    return [torch.equal(value, other) for value, other in zip(values, others, strict=True)]


@pytest.mark.parametrize("name", OPTIMIZERS)
class TestFiniteUpdates:
    @pytest.mark.parametrize("bad", BAD)
    @pytest.mark.parametrize("place", range(len(SHAPES)))
    @pytest.mark.parametrize("before", [0, 2])
    def test_a_bad_gradient_changes_no_parameter_and_training_goes_on(self, name, bad, place, before):
        training = Training(name)
        for step in range(before):
            training.update(step)
        values = training.values()
        training.update(before, bad, place)
        assert all(same(values, training.values()))
        for step in range(before + 1, before + 4):
            values = training.values()
            training.update(step)
            assert same(values, training.values()) == [False] * len(SHAPES) + [True]
        assert all(value.isfinite().all() for value in training.values())
        assert all(value.isfinite().all() for value in training.states())
        assert training.guard.pop() == 1

    def test_without_a_bad_gradient_it_changes_nothing(self, name):
        guarded, plain = Training(name), Training(name, guarded=False)
        start = plain.values()
        for step in range(5):
            guarded.update(step)
            plain.update(step)
            assert all(same(guarded.values(), plain.values()))
            assert all(same(guarded.states(), plain.states()))
        assert not any(same(start, plain.values())[:-1])
        assert guarded.guard.pop() == 0

    @pytest.mark.parametrize("bad", BAD)
    @pytest.mark.parametrize("place", range(len(SHAPES)))
    def test_without_the_guard_the_weights_change(self, name, bad, place):
        """The test above could not fail otherwise."""
        plain = Training(name, guarded=False)
        plain.update(0)
        values = plain.values()
        plain.update(1, bad, place)
        assert not all(same(values, plain.values()))


def test_counts_the_skipped_since_the_last_look():
    training = Training("adamw")
    assert training.guard.pop() is None
    for step, bad in enumerate([None, BAD[0], None, BAD[1], BAD[2], None]):
        training.update(step, bad)
    assert training.guard.pop() == 3
    assert training.guard.pop() is None
    training.update(6)
    assert training.guard.pop() == 0


def test_several_bad_gradients_are_one_update():
    training = Training("adamw")
    values = training.values()
    for parameter, bad in zip(training.parameters, [*BAD, 1.0], strict=True):
        parameter.grad = torch.full_like(parameter, bad)
    training.optimizer.step()
    assert all(same(values, training.values()))
    assert training.guard.pop() == 1


def test_large_finite_gradients_are_no_reason_to_skip():
    """Their sum of squares is not finite in fp32."""
    training = Training("sgd")
    values = training.values()
    for parameter in training.parameters:
        parameter.grad = torch.full_like(parameter, 1e38)
    training.optimizer.step()
    assert not any(same(values, training.values())[:-1])
    assert training.guard.pop() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_several_dtypes(dtype):
    parameters = [torch.nn.Parameter(torch.ones(4, dtype=d)) for d in (torch.float32, dtype)]
    optimizer, guard = torch.optim.SGD(parameters, lr=0.1), FiniteUpdates()
    guard.attach(optimizer)
    for bad, moved in [(None, True), (float("nan"), False), (None, True)]:
        values = [parameter.detach().clone() for parameter in parameters]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        if bad is not None:
            parameters[1].grad[0] = bad
        optimizer.step()
        assert same(values, parameters) == [not moved] * 2
    assert guard.pop() == 1


def test_no_gradient_at_all():
    training = Training("adamw")
    values = training.values()
    training.optimizer.step()
    assert all(same(values, training.values()))
    assert training.guard.pop() is None


def test_accelerate_and_a_schedule_keep_the_guard():
    training = Training("adamw")
    optimizer = Accelerator(cpu=True).prepare(training.optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda step: 1 / (step + 1))
    values = training.values()
    for parameter in training.parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step()
    scheduler.step()
    assert all(same(values, training.values()))
    assert training.guard.pop() == 1


def test_overflow_of_a_gradient_scaler_is_its_own(monkeypatch):
    """In fp16 the scaler skips the update and lowers its scale; that is no fault to stop for."""
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    guard = FiniteUpdates()
    guard.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((parameter * float("inf")).sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(parameter, torch.ones(4))
    assert guard.pop() is None


@pytest.mark.parametrize(("skipped", "in_fp16", "stops"), [(0, False, False), (1, False, True), (1, True, False)])
def test_what_deepspeed_skips_stops_training(tmp_path, skipped, in_fp16, stops):
    """It leaves out updates before they come to the optimizer; in fp16 it does so to find its scale."""
    accelerator, alarm = Accelerator(cpu=True), FiniteAlarm()
    engine = SimpleNamespace(skipped_steps=skipped, fp16_enabled=lambda: in_fp16)
    accelerator.deepspeed_engine_wrapped = SimpleNamespace(engine=engine)
    alarm.observe(1, [0], torch.zeros(1), torch.ones(1))
    with pytest.raises(FloatingPointError, match="A gradient is not finite") if stops else nullcontext():
        alarm.check(accelerator, str(tmp_path))
