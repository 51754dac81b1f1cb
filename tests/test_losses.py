# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import pytest
import torch

from trl_focus.losses import LOSSES, PreferenceTerms, mean_error, preference_loss


EPS = 0.1


def logsig(x):
    return -np.logaddexp(0, -x)


def sig(x):
    return np.exp(logsig(x))


# name -> (loss, its slope along the gap, its slope along the chosen error), each of (gap, chosen error, beta)
EXPECTED = {
    "sigmoid": (
        lambda gap, error, beta: -logsig(beta * gap),
        lambda gap, error, beta: -beta * sig(-beta * gap),
        lambda gap, error, beta: 0 * error,
    ),
    "robust": (
        lambda gap, error, beta: (-(1 - EPS) * logsig(beta * gap) + EPS * logsig(-beta * gap)) / (1 - 2 * EPS),
        lambda gap, error, beta: -beta * ((1 - EPS) * sig(-beta * gap) + EPS * sig(beta * gap)) / (1 - 2 * EPS),
        lambda gap, error, beta: 0 * error,
    ),
    "hinge": (
        lambda gap, error, beta: np.maximum(0, 1 - beta * gap),
        lambda gap, error, beta: np.where(beta * gap < 1, -beta, 0),
        lambda gap, error, beta: 0 * error,
    ),
    "ipo": (
        lambda gap, error, beta: (gap - 1 / (2 * beta)) ** 2,
        lambda gap, error, beta: 2 * (gap - 1 / (2 * beta)),
        lambda gap, error, beta: 0 * error,
    ),
    "sft": (
        lambda gap, error, beta: beta / 4 * error,
        lambda gap, error, beta: 0 * gap,
        lambda gap, error, beta: beta / 4 + 0 * error,
    ),
}
NAMES = list(EXPECTED)


def random_terms(beta, seed=0):
    """Terms whose sigmoid's argument is of the order of 1."""
    rng = np.random.default_rng(seed)
    gap, error = rng.normal(0, 2, 64) / beta, rng.uniform(0.1, 2, 64)
    gap_B, error_B = (torch.tensor(value, requires_grad=True) for value in (gap, error))
    return PreferenceTerms(gap_B, error_B, beta, EPS), gap, error


def assert_close(actual, expected):
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-6, atol=1e-12)


def test_every_loss_is_tested():
    assert LOSSES.keys() == EXPECTED.keys() | {"anchor"}


@pytest.mark.parametrize("beta", [1.0, 2000.0])
def test_anchor_is_a_quarter_of_beta_for_each_unit_of_drift(beta):
    drift_B = torch.rand(64, dtype=torch.float64, requires_grad=True)
    terms = random_terms(beta)[0]._replace(drift_B=drift_B)
    loss_B = LOSSES["anchor"](terms)
    assert_close(loss_B, beta / 4 * drift_B.detach().numpy())
    assert_close(torch.autograd.grad(loss_B.sum(), drift_B)[0], np.full(64, beta / 4))


@pytest.mark.parametrize("beta", [1.0, 2000.0])
@pytest.mark.parametrize("name", NAMES)
class TestSingleLosses:
    def test_loss_and_gradient_are_those_of_the_formula(self, name, beta):
        terms, gap, error = random_terms(beta)
        loss_B = LOSSES[name](terms)
        value, slope, error_slope = EXPECTED[name]
        assert loss_B.shape == (64,)
        assert_close(loss_B, value(gap, error, beta))
        loss_B.sum().backward()
        for leaf, expected in [(terms.gap_B, slope), (terms.chosen_error_B, error_slope)]:
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            assert_close(grad, expected(gap, error, beta))

    def test_beta_may_be_a_tensor(self, name, beta):
        terms, gap, error = random_terms(beta)
        loss_B = LOSSES[name](terms._replace(beta=torch.tensor(beta)))
        assert_close(loss_B, EXPECTED[name][0](gap, error, beta))


@pytest.mark.parametrize("eps", [0.0, 0.25, 0.49])
def test_label_smoothing(eps):
    terms, gap, _ = random_terms(2000.0)
    inside = 2000.0 * gap
    expected = (-(1 - eps) * logsig(inside) + eps * logsig(-inside)) / (1 - 2 * eps)
    assert_close(LOSSES["robust"](terms._replace(label_smoothing=eps)), expected)


def test_robust_is_unbiased_under_flipped_labels():
    """Its mean over labels flipped with probability eps is the sigmoid loss: what it is for."""
    terms, gap, _ = random_terms(1.0)
    agree_B, flipped_B = (LOSSES["robust"](terms._replace(gap_B=sign * terms.gap_B)) for sign in (1, -1))
    assert_close((1 - EPS) * agree_B + EPS * flipped_B, -logsig(gap))


class TestWeightedSum:
    @pytest.mark.parametrize("weights", [None, [1.0] * 5, [0.5, 2.0, 0.0, 3.0, 0.25]])
    def test_sum_and_gradient(self, weights):
        terms, gap, error = random_terms(2000.0)
        loss_B = preference_loss(terms, NAMES, weights)
        loss_B.sum().backward()
        expected = [0.0, 0.0, 0.0]
        for name, weight in zip(NAMES, weights or [1.0] * 5, strict=True):
            parts = [part(gap, error, 2000.0) for part in EXPECTED[name]]
            expected = [total + weight * part for total, part in zip(expected, parts, strict=True)]
        for actual, value in zip((loss_B, terms.gap_B.grad, terms.chosen_error_B.grad), expected, strict=True):
            assert_close(actual, value)

    def test_one_weight_per_loss(self):
        terms, _, _ = random_terms(1.0)
        with pytest.raises(ValueError):
            preference_loss(terms, ["sigmoid", "sft"], [1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name,eps", [("sigmoid", 0.0), ("robust", 0.0), ("robust", EPS)])
def test_extremes_stay_finite(name, eps, dtype):
    inside_B = torch.tensor([-1e6, 1e6], dtype=dtype, requires_grad=True)
    loss_B = LOSSES[name](PreferenceTerms(inside_B, torch.zeros(2), 1.0, eps))
    (grad_B,) = torch.autograd.grad(loss_B.sum(), inside_B)
    np.testing.assert_allclose(loss_B.detach(), np.array([1 - eps, -eps]) * 1e6 / (1 - 2 * eps), rtol=1e-6)
    np.testing.assert_allclose(grad_B, np.array([eps - 1, -eps]) / (1 - 2 * eps), rtol=1e-6)


class TestMeanError:
    def test_weighted_sum_over_the_number_of_cells(self):
        rng = np.random.default_rng(0)
        error, weights = rng.uniform(0, 2, (3, 4, 6)), rng.uniform(0, 3, (3, 4, 6))
        actual = mean_error(torch.tensor(error), torch.tensor(weights))
        np.testing.assert_allclose(actual, (weights * error).reshape(3, -1).sum(1) / 24, rtol=1e-12)

    @pytest.mark.parametrize("grid", [(4, 6), (32, 32), (37, 51)])
    def test_weight_1_is_no_weight_to_the_last_bit(self, grid):
        plain_BHW = torch.randn(8, *grid, generator=torch.Generator().manual_seed(0)).requires_grad_()
        weighted_BHW = plain_BHW.detach().clone().requires_grad_()
        plain_B, weighted_B = mean_error(plain_BHW), mean_error(weighted_BHW, torch.ones(8, *grid))
        assert torch.equal(plain_B, weighted_B)
        plain_B.sum().backward()
        weighted_B.sum().backward()
        assert torch.equal(plain_BHW.grad, weighted_BHW.grad)

    def test_no_mean_over_images(self):
        error_BHW = torch.arange(3.0)[:, None, None].expand(3, 2, 5)
        assert mean_error(error_BHW).tolist() == [0, 1, 2]


@pytest.mark.parametrize("beta", [1.0, 2000.0])
def test_from_cells_to_loss_and_back(beta):
    """The whole chain: errors of the cells of both models, a map on each image, sigmoid loss plus SFT."""
    rng = np.random.default_rng(1)
    pairs, grid, cells = 5, (4, 6), 24
    ref = rng.uniform(0.5, 1.5, (2 * pairs, *grid))
    policy = ref + rng.normal(0, 5 / beta, ref.shape)
    weights = rng.uniform(0, 1, ref.shape)

    change = (weights * policy).sum((1, 2)) / cells - (weights * ref).sum((1, 2)) / cells
    inside = -beta / 2 * (change[:pairs] - change[pairs:])
    expected = -logsig(inside) + beta / 4 * policy[:pairs].mean((1, 2))
    slope = np.repeat(sig(-inside)[:, None], 2, 1).T.reshape(-1) * np.repeat([1, -1], pairs) * beta / 2
    expected_grad = slope[:, None, None] * weights / cells
    expected_grad[:pairs] += beta / 4 / cells

    policy_BHW, ref_BHW, weights_BHW = (torch.tensor(value) for value in (policy, ref, weights))
    policy_BHW.requires_grad_()
    chosen_B, rejected_B = mean_error(policy_BHW - ref_BHW, weights_BHW).chunk(2)
    terms = PreferenceTerms(-0.5 * (chosen_B - rejected_B), mean_error(policy_BHW).chunk(2)[0], beta)
    loss_B = preference_loss(terms, ["sigmoid", "sft"])
    loss_B.sum().backward()
    assert_close(loss_B, expected)
    assert_close(policy_BHW.grad, expected_grad)


def test_difference_before_the_mean_does_not_cancel():
    """Errors near 1 in fp32 at beta 2000: a difference of means is off by more than what is asked for."""
    generator = torch.Generator().manual_seed(0)
    ref_BHW = 1 + 0.1 * torch.randn(512, 32, 32, generator=generator)
    policy_BHW = ref_BHW + 1e-3 * torch.randn(512, 32, 32, generator=generator)

    def loss(chosen_rejected):
        chosen_B, rejected_B = chosen_rejected.chunk(2)
        terms = PreferenceTerms(-0.5 * (chosen_B - rejected_B), chosen_B, 2000.0)
        return preference_loss(terms, ["sigmoid"]).double()

    exact_B = loss(mean_error(policy_BHW.double() - ref_BHW.double()))
    ours_B = loss(mean_error(policy_BHW - ref_BHW))
    naive_B = loss(mean_error(policy_BHW) - mean_error(ref_BHW))
    assert (exact_B - np.log(2)).abs().max() > 0.01  # the loss is not trivial
    assert (ours_B - exact_B).abs().max() < 1e-5
    assert (naive_B - exact_B).abs().max() > 1e-5
