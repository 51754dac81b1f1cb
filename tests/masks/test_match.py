# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The arithmetic of matching, with features whose answers are known by hand."""

import pytest
import torch

from trl_focus.masks.match import components, otsu, places


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0, 0, 0, 1, 1], 1),
        ([0.1, 0.9, 0.2, 0.8, 0.15], 0.8),
        ([1.0, 1.0, 1.0], 1.0),
        ([3.0], 3.0),
        ([-1, -1, -0.9, 0.5], 0.5),
    ],
)
def test_otsu(values, expected):
    assert otsu(torch.tensor(values, dtype=torch.float64)) == expected


def test_otsu_by_trying_all():
    values = torch.rand(200, generator=torch.Generator().manual_seed(0)) ** 3

    def between(threshold):
        high = values[values >= threshold].double()
        low = values[values < threshold].double()
        return len(high) * len(low) * (high.mean() - low.mean()) ** 2

    best = max(values.sort().values[1:].tolist(), key=between)
    assert otsu(values) == pytest.approx(best)


def test_components_join_over_corners():
    cells = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    values = torch.tensor([[1, 9, 9, 5], [0, 0, 9, 0], [9, 9, 9, 9], [2, 2, 2, 2.0]])
    parts = [part.int().tolist() for part in components(cells, values)]
    assert parts == [
        [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]],
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    assert list(components(torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2, 2))) == []


GROUND, CAT, DOG = torch.eye(3)


def features(rows):
    return torch.stack([{".": GROUND, "c": CAT, "d": DOG, "x": 0.6 * CAT + 0.8 * GROUND}[c] for c in "".join(rows)])


def boxes(found):
    return [[each.box for each in places] for places in found]


def test_places_in_pixels():
    found = places(features(["....", ".cc.", "...d"]), torch.stack([CAT, DOG]), [0, 1], 2, (3, 4), (40, 60))
    assert boxes(found) == [[(10, 20, 30, 40)], [(30, 40, 40, 60)]]
    assert [each[0].score for each in found] == [1, 1]


def test_score_is_the_cosine_of_the_place():
    ((found,),) = places(features(["..", ".x"]), CAT[None], [0], 1, (2, 2), (20, 20))
    assert found.box == (10, 10, 20, 20) and found.score == pytest.approx(0.6)


def test_what_looks_more_like_another_subject_is_left_to_it():
    alike = torch.tensor([0.0, 0.7, 0.714])
    image = torch.cat([features(["......c"]), alike[None]])
    assert boxes(places(image, CAT[None], [0], 1, (1, 8), (80, 10))) == [[(60, 0, 80, 10)]]
    found = places(image, torch.stack([CAT, alike]), [0, 1], 2, (1, 8), (80, 10))
    assert boxes(found) == [[(60, 0, 70, 10)], [(70, 0, 80, 10)]]


def test_two_references_of_one_subject():
    side = torch.tensor([0.0, 0.6, 0.8])
    both = torch.cat([features(["...c"]), side[None]])
    ((found,),) = places(both, torch.stack([CAT, side]), [0, 0], 1, (1, 5), (50, 10))
    assert found.box == (30, 0, 50, 10)  # each half is like one of them


def test_several_places_the_surest_first():
    found = places(features(["c..x", "...x"]), CAT[None], [0], 1, (2, 4), (40, 20))
    assert boxes(found) == [[(0, 0, 10, 10), (30, 0, 40, 20)]]
    assert [each.score for each in found[0]] == pytest.approx([1, 0.6])


def test_specks_are_left_out():
    assert boxes(places(features(["c.cc", "..cc", "..cc"]), CAT[None], [0], 1, (3, 4), (40, 30))) == [
        [(20, 0, 40, 30)]
    ]


def test_a_subject_without_references_is_nowhere():
    assert boxes(places(features(["c."]), CAT[None], [1], 2, (1, 2), (20, 10))) == [[], [(0, 0, 10, 10)]]


def test_an_empty_reference_matches_nothing():
    ((found,),) = places(features(["c."]), torch.zeros(1, 3), [0], 1, (1, 2), (20, 10))
    assert found.score == 0
