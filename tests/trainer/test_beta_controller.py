# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json
import math

import pytest
import torch
from accelerate import Accelerator

from trl_focus.trainer.beta_controller import GradientFactorController


ONE = Accelerator(cpu=True)
TARGET = 0.3


def controller(beta=2000.0, warmup_steps=0, bounds=(20.0, 20000.0)):
    return GradientFactorController(beta, TARGET, *bounds, warmup_steps, torch.device("cpu"))


def inside_of(*factors):
    """Arguments of the sigmoid with these gradient factors."""
    return torch.tensor([math.log(1 / factor - 1) for factor in factors])


def update(control, *factors):
    control.observe(inside_of(*factors), torch.ones(len(factors)))
    control.step(ONE)
    return control.beta.item()


def moved(beta, factor):
    return pytest.approx(beta * math.exp(0.05 * (factor - TARGET)), rel=1e-6)


@pytest.mark.parametrize("factor", [0.01, 0.2, 0.3, 0.4, 0.5, 0.99])
def test_one_update(factor):
    assert update(controller(), factor) == moved(2000, factor)


def test_direction():
    assert update(controller(), 0.5) > 2000 > update(controller(), 0.1)


def test_mean_over_pairs_of_all_batches_since_the_last_update():
    control = controller()
    control.observe(inside_of(0.1), torch.ones(1))
    control.observe(inside_of(0.5, 0.6, 0.4), torch.ones(3))
    control.step(ONE)
    first = control.beta.item()
    assert first == moved(2000, 0.4)
    assert update(control, 0.2) == moved(first, 0.2)


def test_pairs_of_all_processes_count():
    class Two:
        def reduce(self, tensor, reduction):
            assert reduction == "sum"
            return tensor + torch.tensor([3 * 0.2, 3.0])  # three pairs of the other process

    control = controller()
    control.observe(inside_of(0.6), torch.ones(1))
    control.step(Two())
    assert control.beta.item() == moved(2000, 0.3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("counts", [1.0, 0.0])
def test_pairs_that_are_not_finite_are_ignored(bad, counts):
    control = controller()
    control.observe(torch.tensor([bad, *inside_of(0.45)]), torch.tensor([counts, 1.0]))
    control.step(ONE)
    assert control.beta.item() == moved(2000, 0.45)


def test_pairs_that_do_not_count_are_ignored():
    control = controller()
    control.observe(inside_of(0.45, 0.9), torch.tensor([1, 0]))
    control.step(ONE)
    assert control.beta.item() == moved(2000, 0.45)


def test_nothing_seen_leaves_beta():
    control = controller()
    control.step(ONE)
    control.observe(torch.tensor([math.nan]), torch.ones(1))
    control.step(ONE)
    assert control.beta.item() == 2000
    assert update(control, 0.5) == moved(2000, 0.5)


def test_warmup():
    control = controller(warmup_steps=3)
    assert [update(control, 0.5) for _ in range(3)] == [2000] * 3
    assert update(control, 0.5) == moved(2000, 0.5)


@pytest.mark.parametrize("factor,bound", [(0.99, 2100.0), (0.01, 1900.0)])
def test_bounds(factor, bound):
    control = controller(bounds=(1900.0, 2100.0))
    betas = [update(control, factor) for _ in range(20)]
    assert betas[-1] == bound
    assert all(1900 <= beta <= 2100 for beta in betas)


def test_reaches_the_target():
    control = controller()
    gap_B = torch.full((4,), 1e-3)
    for _ in range(2000):
        control.observe(control.beta * gap_B, torch.ones(4))
        control.step(ONE)
    assert control.beta.item() == pytest.approx(1000 * math.log(1 / TARGET - 1), rel=1e-3)


def test_no_graph_is_kept():
    control = controller()
    control.observe(torch.zeros(2, requires_grad=True), torch.ones(2))
    control.step(ONE)
    assert not control.beta.requires_grad


@pytest.mark.parametrize("beta", [2000.0, 2000, 1])
def test_state_round_trip_is_exact(beta):
    """A beta given as an integer, too: `beta=2000` is what people write."""
    bounds = (beta / 100, beta * 100)
    control = controller(beta, warmup_steps=2, bounds=bounds)
    for factor in (0.5, 0.5, 0.1, 0.17):
        update(control, factor)
    assert control.beta.item() != beta
    resumed = controller(beta, warmup_steps=2, bounds=bounds)
    resumed.load_state_dict(json.loads(json.dumps(control.state_dict())))
    assert resumed.beta.item() == control.beta.item()
    assert [update(resumed, 0.4) for _ in range(3)] == [update(control, 0.4) for _ in range(3)]


def test_warmup_goes_on_where_it_stood():
    control = controller(warmup_steps=3)
    update(control, 0.5), update(control, 0.5)
    resumed = controller(warmup_steps=3)
    resumed.load_state_dict(control.state_dict())
    assert update(resumed, 0.5) == 2000
    assert update(resumed, 0.5) == moved(2000, 0.5)
