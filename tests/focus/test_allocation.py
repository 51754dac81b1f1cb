# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import math
from dataclasses import FrozenInstanceError, astuple, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_focus.focus.allocation import (
    LEAST,
    FocusWeights,
    detail_gate,
    focus_parts,
    match_share,
    normalise,
    subject_gate,
    weigh,
)
from trl_focus.focus.correspondence import Correspondence, alignment_ratio, graded, top_k


DEFAULT = FocusWeights(0.1, 0.4, 0.2, 0.3, 0.2)
HOW = ("none", "mean", "subject")
LEVELS = torch.tensor([0.0, 0.25, 1.0])


def one(*values):
    """A map of one image whose cells stand in a row."""
    return torch.tensor([[values]])


def compose(prior_BHW, correspondence, detail_BHW, gate_B, level_B, weights):
    return weigh(focus_parts(prior_BHW, correspondence, detail_BHW, gate_B, level_B), weights)


def composed(prior=1.0, matched=0.0, leak=0.0, detail=0.0, gate=1.0, level=0.0, weights=DEFAULT):
    """Weight of one cell."""
    correspondence = Correspondence(one(matched), one(leak))
    gate_B, level_B = torch.tensor([gate]), torch.tensor([level])
    return compose(one(prior), correspondence, one(detail), gate_B, level_B, weights).item()


class TestMatchShare:
    def test_grows_as_noise_falls(self):
        assert match_share(LEVELS).tolist() == pytest.approx([1.0, 0.825, 0.3])

    def test_bf16(self):
        assert match_share(LEVELS.bfloat16()).dtype == torch.float32


class TestDetailGate:
    def test_by_alignment(self):
        assert detail_gate(LEVELS, torch.tensor([0.4, 0.5, 0.9]), "alignment", 0.5).tolist() == [0.0, 1.0, 1.0]

    @pytest.mark.parametrize("alignment_B", [None, torch.zeros(3)])
    def test_by_level(self, alignment_B):
        assert detail_gate(LEVELS, alignment_B, "level", 0.25).tolist() == [1.0, 1.0, 0.0]

    def test_refusals(self):
        with pytest.raises(ValueError, match="'alignment' or 'level', got 'sigma'"):
            detail_gate(LEVELS, LEVELS, "sigma", 0.5)
        with pytest.raises(ValueError, match="without a correspondence: choose 'level'"):
            detail_gate(LEVELS, None, "alignment", 0.5)


class TestFocusWeights:
    @pytest.mark.parametrize("name", [field.name for field in fields(FocusWeights)])
    @pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
    def test_only_finite_and_positive(self, name, value):
        with pytest.raises(ValueError, match=f"{name}={value}.*at least 0"):
            FocusWeights(**{name: value})

    def test_frozen(self):
        with pytest.raises(FrozenInstanceError):
            DEFAULT.prior = 1.0


class TestCompose:
    @pytest.mark.parametrize(
        "cell,expected",
        [
            (dict(prior=0.0), 0.1),
            (dict(prior=0.0, detail=1.0, matched=1.0, leak=1.0), 0.1),
            (dict(matched=1.0), 0.5),
            (dict(), 0.7),
            (dict(leak=1.0), 0.8),
            (dict(matched=1.0, detail=1.0), 0.7),
            (dict(matched=1.0, detail=1.0, gate=0.0), 0.5),
            (dict(matched=1.0, detail=1.0, level=1.0), 0.5),
            (dict(matched=1.0, detail=0.5, level=0.5), 0.55),
            (dict(leak=1.0, detail=1.0), 1.0),
            (dict(matched=0.5), 0.6),
            (dict(matched=0.5, leak=0.5), 0.5 + 0.2 * 0.25 + 0.3 * 0.5),
            (dict(prior=0.5, leak=1.0, detail=1.0), 0.1 + 0.9 / 2),
        ],
    )
    def test_default_weight_of_a_cell(self, cell, expected):
        assert composed(**cell) == pytest.approx(expected)

    def test_parts_that_are_none_add_nothing(self):
        prior_BHW, gate_B = torch.rand(3, 2, 4), torch.ones(3)
        correspondence, detail_BHW = Correspondence(*torch.rand(2, 3, 2, 4) / 2), torch.rand(3, 2, 4)

        def weights(correspondence, detail_BHW, weights=DEFAULT):
            return compose(prior_BHW, correspondence, detail_BHW, gate_B, LEVELS, weights)

        mask_BHW = 0.1 + 0.4 * prior_BHW
        torch.testing.assert_close(weights(None, None), mask_BHW)
        without = weights(correspondence, detail_BHW, replace(DEFAULT, structure=0, leak=0))
        torch.testing.assert_close(weights(None, detail_BHW), without)
        torch.testing.assert_close(weights(correspondence, None), weights(correspondence, 0 * detail_BHW))

    def test_background_alone_is_uniform(self):
        uniform = FocusWeights(1, 0, 0, 0, 0)
        assert composed(prior=0.3, matched=0.2, leak=0.1, detail=0.7, weights=uniform) == 1

    def test_levels_and_gates_are_each_images_own(self):
        full_BHW = torch.ones(3, 1, 1)
        gate_B = torch.tensor([1.0, 1.0, 0.0])
        actual = compose(full_BHW, None, full_BHW, gate_B, LEVELS, FocusWeights(0, 0, 0, 0, 1))
        assert actual.flatten().tolist() == pytest.approx([1.0, 0.75, 0.0])

    def test_focus_leaves_what_is_matched(self):
        """Misaligned cells weigh more than matched ones, and those with a leak the most."""
        similarity_BRHW = torch.tensor([[[[0.9, 0.5, 0.5, 0.5]], [[0.5, 0.5, 0.9, 0.5]]]])  # of A, of B
        masks_BSHW = torch.tensor([[[[1.0, 1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]]])  # A's place; B is absent
        correspondence = graded(similarity_BRHW, torch.tensor([[0, 1]]), masks_BSHW)
        matched, misaligned, leaking, background = compose(
            masks_BSHW[:, 0], correspondence, None, torch.zeros(1), torch.zeros(1), DEFAULT
        ).flatten()
        assert background < matched < misaligned < leaking


class TestFocusParts:
    def test_by_hand(self):
        """A quarter of the cell is background; of the rest half is matched and a fifth leaks."""
        parts = focus_parts(
            one(0.75), Correspondence(one(0.5), one(0.2)), one(0.8), torch.tensor([1.0]), torch.tensor([0.25])
        )
        assert {name: part.item() for name, part in parts.items()} == pytest.approx(
            {"prior": 0.75, "matched": 0.375, "structure": 0.75 * 0.5 * 0.8, "leak": 0.15, "detail": 0.75 * 0.75 * 0.8}
        )

    def test_only_what_is_known(self):
        assert focus_parts(one(0.5)).keys() == {"prior"}
        assert focus_parts(one(0.5), None, one(0.5), torch.ones(1), torch.zeros(1)).keys() == {"prior", "detail"}

    def test_weights_are_a_linear_sum_of_the_parts(self):
        parts = {name: torch.rand(2, 3, 4) for name in ("prior", "matched", "structure", "leak", "detail")}
        weights = FocusWeights(0.3, 0.5, 0.7, 1.1, 1.3)
        expected = 0.3 + 0.5 * parts["prior"] + 0.7 * parts["structure"] + 1.1 * parts["leak"] + 1.3 * parts["detail"]
        torch.testing.assert_close(weigh(parts, weights), expected)


# A of 4 cells and B of 1, then background
ROW_MASKS = torch.tensor([[[[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0, 1.0, 0.0]]]])
ROW = one(1.0, 1.0, 0.5, 0.5, 1.0, 0.1)


class TestNormalise:
    def test_none(self):
        assert torch.equal(normalise(ROW, "none"), ROW)

    def test_mean(self):
        both = torch.cat([ROW, 3 * ROW, 0 * ROW])
        actual = normalise(both, "mean")
        assert actual.mean(dim=(1, 2)).tolist() == pytest.approx([1, 1, 0])
        torch.testing.assert_close(actual[0], ROW[0] / ROW.mean())

    def test_subjects_carry_the_same(self):
        """A had 3 and B 1; now each has 2, and a cell of A keeps its proportion to the others."""
        actual = normalise(ROW, "subject", ROW_MASKS)
        torch.testing.assert_close(actual, one(2 / 3, 2 / 3, 1 / 3, 1 / 3, 2.0, 0.1))

    def test_one_subject_is_left_as_it_is(self):
        torch.testing.assert_close(normalise(ROW, "subject", ROW_MASKS[:, :1]), ROW)

    @pytest.mark.parametrize("masks", [torch.zeros(1, 0, 1, 6), torch.zeros(1, 3, 1, 6)])
    def test_no_subject_is_left_as_it_is(self, masks):
        assert torch.equal(normalise(ROW, "subject", masks), ROW)

    def test_an_absent_subject_takes_nothing(self):
        masks = torch.cat([ROW_MASKS, torch.zeros(1, 1, 1, 6)], dim=1)
        torch.testing.assert_close(normalise(ROW, "subject", masks), normalise(ROW, "subject", ROW_MASKS))

    def test_a_subject_without_weight_counts_as_absent(self):
        actual = normalise(one(1.0, 1.0, 1.0, 1.0, 0.0, 0.1), "subject", ROW_MASKS)
        torch.testing.assert_close(actual, one(1.0, 1.0, 1.0, 1.0, 0.0, 0.1))

    def test_a_soft_cell_is_shared_with_the_background(self):
        """B has half of its cell: 0.5 against 3, so its half is scaled by 3.5 and the other half not at all."""
        masks = ROW_MASKS.clone()
        masks[0, 1] *= 0.5
        actual = normalise(ROW, "subject", masks)
        assert actual[0, 0, 4].item() == pytest.approx(0.5 + 0.5 * 3.5)

    def test_subjects_on_the_same_cells_are_one(self):
        torch.testing.assert_close(normalise(ROW, "subject", ROW_MASKS[:, [0, 0]]), ROW)

    def test_subjects_of_one_cell_are_equal(self):
        masks = torch.eye(10).reshape(1, 10, 2, 5)
        weights_BHW = torch.rand(1, 2, 5) + 0.1
        actual = normalise(weights_BHW, "subject", masks)
        torch.testing.assert_close(actual, weights_BHW.mean().expand(1, 2, 5))

    def test_images_do_not_mix(self):
        actual = normalise(torch.cat([ROW, 5 * ROW]), "subject", ROW_MASKS.repeat(2, 1, 1, 1))
        torch.testing.assert_close(actual[1:], 5 * normalise(ROW, "subject", ROW_MASKS))
        torch.testing.assert_close(actual[:1], normalise(ROW, "subject", ROW_MASKS))

    def test_order_of_subjects_does_not_matter(self):
        masks, weights_BHW = torch.rand(2, 4, 3, 5), torch.rand(2, 3, 5)
        actual = normalise(weights_BHW, "subject", masks[:, [2, 0, 3, 1]])
        torch.testing.assert_close(actual, normalise(weights_BHW, "subject", masks))

    def test_refusals(self):
        with pytest.raises(ValueError, match="'none', 'mean' or 'subject', got 'area'"):
            normalise(ROW, "area")
        with pytest.raises(ValueError, match="without subject masks: choose 'none' or 'mean'"):
            normalise(ROW, "subject")

    @pytest.mark.parametrize("how", HOW)
    def test_input_is_not_changed_and_bf16_is_welcome(self, how):
        before = ROW.clone()
        actual = normalise(ROW.bfloat16(), how, ROW_MASKS.bfloat16())
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, normalise(ROW, how, ROW_MASKS), atol=0.01, rtol=0)
        assert torch.equal(ROW, before)


@st.composite
def anything(draw):
    """Masks, similarities, detail and levels of any kind, with or without a correspondence."""
    images, subjects, height, width = (draw(st.integers(low, high)) for low, high in ((1, 3), (0, 10), (1, 5), (1, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    present = rand(images, subjects, 1, 1) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    single = (torch.arange(height * width) < 1).reshape(height, width)
    change = draw(st.sampled_from([torch.round, torch.ceil, torch.square, lambda mask: mask * 1e-7, single.mul]))
    masks_BSHW = change(rand(images, subjects, height, width)) * present
    prior_BHW = masks_BSHW.amax(dim=1) if subjects else torch.zeros(images, height, width)
    level_B = draw(st.sampled_from([rand(images), torch.zeros(images), torch.ones(images)]))
    similarity_BRHW = rand(images, subjects, height, width) * 2 - 1
    ids_BR = torch.arange(subjects).expand(images, subjects)
    correspondence = draw(
        st.sampled_from(
            [
                None,
                graded(similarity_BRHW, ids_BR, masks_BSHW),
                top_k(similarity_BRHW, ids_BR, masks_BSHW, match_share(level_B)),
            ]
        )
    )
    alignment_B = None if correspondence is None else alignment_ratio(correspondence.matched_BHW, prior_BHW)
    by = "level" if correspondence is None else draw(st.sampled_from(["level", "alignment"]))
    gate_B = detail_gate(level_B, alignment_B, by, draw(st.floats(0, 1)))
    assert ((gate_B == 0) | (gate_B == 1)).all()
    detail_BHW = draw(st.sampled_from([None, rand(images, height, width)]))
    return masks_BSHW, (prior_BHW, correspondence, detail_BHW, gate_B, level_B)


def assert_normalised(actual, weights_BHW, how, masks_BSHW):
    assert actual.shape == weights_BHW.shape and actual.isfinite().all() and (actual >= 0).all()
    if how == "none":
        assert torch.equal(actual, weights_BHW)
    elif how == "mean":
        mean_B = weights_BHW.mean(dim=(1, 2))
        torch.testing.assert_close(actual.mean(dim=(1, 2)), (mean_B > 0).float())
    else:
        # The image carries what it did; subjects that share no cell carry the same; cells in no mask keep their weight
        torch.testing.assert_close(actual.sum(dim=(1, 2)), weights_BHW.sum(dim=(1, 2)), rtol=1e-4, atol=1e-4)
        outside = (masks_BSHW == 0).all(dim=1)
        torch.testing.assert_close(actual[outside], weights_BHW[outside])
        apart_B = ((masks_BSHW == 0) | (masks_BSHW == 1)).flatten(1).all(1) & (masks_BSHW.sum(1) <= 1).flatten(1).all(
            1
        )
        before_BS, total_BS = ((masks_BSHW * part.unsqueeze(1)).sum((2, 3)) for part in (weights_BHW, actual))
        for before_S, total_S in zip(before_BS[apart_B], total_BS[apart_B], strict=True):
            expected = before_S[before_S > LEAST].mean().expand(int((before_S > LEAST).sum()))
            torch.testing.assert_close(total_S[before_S > LEAST], expected, rtol=1e-4, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(anything(), st.sampled_from(HOW), st.lists(st.sampled_from([0.0, 1e-8, 0.3, 1.0, 1e4]), min_size=5, max_size=5))
def test_weights_whatever_comes_in(inputs, how, weights):
    masks_BSHW, parts = inputs
    default_BHW = compose(*parts, DEFAULT)
    assert (default_BHW >= 0.1).all() and (default_BHW <= 1 + 1e-6).all()
    for weights_BHW in (default_BHW, compose(*parts, FocusWeights(*weights))):
        assert_normalised(normalise(weights_BHW, how, masks_BSHW), weights_BHW, how, masks_BSHW)


def test_the_largest_default_weight_is_exactly_1():
    background, prior, structure, leak, detail = astuple(DEFAULT)
    assert background + prior + max(structure, leak) + detail == 1
    assert composed(leak=1.0, detail=1.0) == 1.0
    generator = torch.Generator().manual_seed(0)
    matched_BHW, leak_BHW = torch.rand(2, 1, 100, 100, generator=generator)
    correspondence = Correspondence(torch.minimum(matched_BHW, 1 - leak_BHW), leak_BHW)
    ones_BHW = torch.ones(1, 100, 100)
    assert compose(ones_BHW, correspondence, ones_BHW, torch.ones(1), torch.zeros(1), DEFAULT).max() <= 1


def whole(prior_BHW, matched_BHW, leak_BHW, detail_BHW, level_B, masks_BSHW, shown_BS):
    correspondence = Correspondence(matched_BHW, leak_BHW)
    gate_B = detail_gate(level_B, alignment_ratio(matched_BHW, prior_BHW), "alignment", 0.5)
    weights_BHW = compose(prior_BHW, correspondence, detail_BHW, gate_B, level_B, DEFAULT)
    return (
        match_share(level_B),
        gate_B,
        weights_BHW,
        subject_gate(shown_BS),
        *(normalise(prior_BHW, how, masks_BSHW) for how in HOW),
    )


def test_nothing_waits_for_the_device_and_nothing_has_a_gradient():
    """A graph without breaks has no value read by the host."""
    inputs = [*torch.rand(4, 2, 3, 4), torch.rand(2), torch.rand(2, 3, 3, 4), torch.rand(2, 3)]
    inputs = [value.requires_grad_() for value in inputs]
    eager, compiled = whole(*inputs), torch.compile(whole, fullgraph=True, backend="eager")(*inputs)
    for value, other in zip(eager, compiled, strict=True):
        torch.testing.assert_close(value, other)
        assert not value.requires_grad
