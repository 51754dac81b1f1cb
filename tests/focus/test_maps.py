# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import pytest
import torch

from trl_focus.focus.maps import FOCUS_MAPS, NEEDS_MASKS, FocusContext, mask, prior, uniform


GRID = (2, 3)
LEVELS = torch.tensor([0.1, 0.9])
# Two images, two subjects with soft, overlapping masks; on the second image the second subject is absent
MASKS = torch.tensor(
    [
        [[[0.0, 0.25, 1.0], [0.0, 0.0, 0.5]], [[0.0, 0.5, 0.75], [0.125, 0.0, 0.5]]],
        [[[1.0, 0.0, 0.0], [0.0, 0.0, 0.25]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]],
    ]
)
UNION = [[[0.0, 0.5, 1.0], [0.125, 0.0, 0.5]], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.25]]]


def context(masks=MASKS):
    return FocusContext(LEVELS, GRID, masks)


def test_prior_is_the_union_on_each_image():
    assert prior(context()).tolist() == UNION


@pytest.mark.parametrize("background,weight", [(0.1, 0.9), (0.0, 1.0), (1.0, 0.0), (0.5, 2.0)])
def test_mask_is_background_plus_weighted_union(background, weight):
    actual = mask(context(), background, weight)
    assert actual.shape == (2, *GRID)
    np.testing.assert_allclose(actual, background + weight * np.array(UNION), rtol=1e-6)


def test_overlap_counts_once_and_order_does_not_matter():
    both = context(torch.ones(2, 3, *GRID))
    assert mask(both, 0.1, 0.9).unique().tolist() == pytest.approx([1.0])
    assert torch.equal(prior(context(MASKS.flip(1))), prior(context()))


def test_only_absent_subjects_are_background():
    assert torch.equal(mask(context(torch.zeros(2, 2, *GRID)), 0.25, 0.75), torch.full((2, *GRID), 0.25))


def test_no_subjects_are_background():
    assert torch.equal(mask(context(torch.zeros(2, 0, *GRID)), 0.25, 0.75), torch.full((2, *GRID), 0.25))


@pytest.mark.parametrize("name", sorted(NEEDS_MASKS))
def test_data_without_masks_is_refused(name):
    with pytest.raises(ValueError, match="chosen_masks.*rejected_masks"):
        FOCUS_MAPS[name](context(None), 0.1, 0.9)


@pytest.mark.parametrize("masks", [None, MASKS])
def test_uniform_is_1(masks):
    assert torch.equal(uniform(context(masks), 0.1, 0.9), torch.ones(2, *GRID))


@pytest.mark.parametrize("name", FOCUS_MAPS)
def test_maps_do_not_change_the_masks(name):
    before = MASKS.clone()
    FOCUS_MAPS[name](context(), 0.1, 0.9).add_(1)
    assert torch.equal(MASKS, before)


def test_maps_that_do_not_need_masks_do_without():
    for name in FOCUS_MAPS.keys() - NEEDS_MASKS:
        assert FOCUS_MAPS[name](context(None), 0.1, 0.9).shape == (2, *GRID)
