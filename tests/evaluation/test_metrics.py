# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Cases whose answers are known by hand: unit vectors at known angles."""

import math
import sys
from itertools import permutations

import numpy as np
import pytest

from trl_focus.evaluation.metrics import assign, collapse_rate, identity, leakage, subject_similarity, unit


def at(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane, so that the cosine of two is that of the angle between them."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_unit():
    vectors = unit(np.array([[3.0, 4.0], [0.0, -2.0]]))
    assert vectors.dtype == np.float32
    assert vectors == pytest.approx(np.array([[0.6, 0.8], [0.0, -1.0]]))
    assert np.isnan(unit(np.zeros((1, 2)))).all()


def test_similarity_is_the_mean_over_a_subjects_images():
    found = subject_similarity(at(0, 90), [at(0, 60), at(180)])
    assert found == pytest.approx(np.array([[(1 + 0.5) / 2, -1], [math.sqrt(3) / 4, 0]]), abs=1e-6)


def test_assignment_is_of_all_together():
    # The first instance is the most similar to both subjects. Greedily, the first subject would take it.
    similarity_IS = np.array([[0.9, 0.8], [0.85, 0.1]])
    assert assign(similarity_IS) == [1, 0]


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (4, 2), (2, 4), (0, 2), (1, 1)])
def test_assignment_against_all_there_are(shape):
    similarity_IS = np.random.default_rng(0).random(shape)
    instances, subjects = shape
    found = assign(similarity_IS)
    taken = [instance for instance in found if instance is not None]
    assert len(found) == subjects and len(taken) == len({*taken}) == min(shape)
    everything = [
        sum(similarity_IS[i, s] for s, i in enumerate(order) if i < instances)
        for order in permutations(range(max(instances, subjects)), subjects)
    ]
    assert sum(similarity_IS[i, s] for s, i in enumerate(found) if i is not None) == pytest.approx(max(everything))


def test_assignment_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="pip install"):
        assign(np.eye(2))


def test_identity():
    similarity_IS = np.array([[0.1, 0.7], [0.6, 0.2]])
    assert identity(similarity_IS, [1, 0]) == pytest.approx([0.6, 0.7])
    assert identity(similarity_IS, [None, 0]) == pytest.approx([0.0, 0.7])


def test_collapse_rate():
    identity_S = np.array([0.39, 0.4, 0.55, 0.9])
    assert [collapse_rate(identity_S, threshold) for threshold in (0.4, 0.5, 0.6, 1.0)] == [0.25, 0.5, 0.75, 1.0]
    assert math.isnan(collapse_rate(np.array([0.1, np.nan]), 0.4))


def test_leakage():
    # The first instance looks like its own subject, the second like the third's
    similarity_IS = np.array([[0.9, 0.3, 0.4], [0.2, 0.5, 0.8], [0.0, 0.1, 0.1]])
    assert leakage(similarity_IS, [0, 1, None]) == pytest.approx([0.4 - 0.9, 0.8 - 0.5])
    assert leakage(similarity_IS, [0, 1, 2]) == pytest.approx([-0.5, 0.3, 0.0])
    assert leakage(similarity_IS, [None, None, None]).shape == (0,)


def test_two_subjects_that_swap_leak():
    references = [at(0), at(40)]
    right = subject_similarity(at(0, 40), references)
    swapped = subject_similarity(at(40, 0), references)
    margin = 1 - math.cos(math.radians(40))
    assert leakage(right, [0, 1]) == pytest.approx([-margin] * 2)
    assert leakage(swapped, [0, 1]) == pytest.approx([margin] * 2)
    assert assign(swapped) == [1, 0]  # and so, where nobody says which instance is whose, they don't
