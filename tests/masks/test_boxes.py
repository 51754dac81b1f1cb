# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import pytest

from trl_focus.masks.boxes import Found, area, assign, distinct, intersection, over_smaller, over_union


def test_by_hand():
    one, other = (0, 0, 4, 2), (2, 1, 6, 5)
    assert area(one) == 8 and area(other) == 16 and intersection(one, other) == 2
    assert over_union(one, other) == pytest.approx(2 / 22) and over_smaller(one, other) == pytest.approx(2 / 8)
    assert area((3, 0, 2, 5)) == intersection((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert over_union((1, 1, 1, 1), (1, 1, 1, 1)) == 0  # nothing, and no division by zero


LEFT, RIGHT, ALL, HEAD = (0, 0, 10, 20), (20, 0, 30, 20), (0, 0, 30, 20), (2, 2, 8, 8)


def test_distinct_places():
    found = [Found(ALL, 0.3), Found(LEFT, 0.9), Found(HEAD, 0.4), Found(RIGHT, 0.5), Found((5, 5, 5, 9), 1.0)]
    assert distinct(found) == [Found(LEFT, 0.9), Found(RIGHT, 0.5)]


def test_each_subject_gets_its_own_place():
    cat = [Found(LEFT, 0.6), Found(RIGHT, 0.5)]
    dog = [Found(LEFT, 0.9), Found(RIGHT, 0.2)]
    places, others = assign([cat, dog], 0.1)
    assert places == [Found(RIGHT, 0.5), Found(LEFT, 0.9)] and others == [[], []]


@pytest.mark.parametrize("score, told", [(0.46, True), (0.44, False)])
def test_what_is_left_is_told(score, told):
    other = Found(RIGHT, score)
    places, others = assign([[Found(LEFT, 0.9), other, Found(HEAD, 0.8)]], 0.1)
    assert places == [Found(LEFT, 0.9)] and others == [[other] if told else []]


def test_below_the_least_nothing_counts():
    places, others = assign([[Found(LEFT, 0.9), Found(RIGHT, 0.3)], [Found(RIGHT, 0.39)]], 0.4)
    assert places == [Found(LEFT, 0.9), None] and others == [[], []]


def test_one_place_for_two_subjects():
    places, _ = assign([[Found(LEFT, 0.5)], [Found((0, 0, 10, 19), 0.6)]], 0.1)
    assert places == [None, Found((0, 0, 10, 19), 0.6)]


def test_a_subject_may_stand_in_front_of_another():
    places, others = assign([[Found(ALL, 0.5)], [Found(LEFT, 0.6)]], 0.1)
    assert places == [Found(ALL, 0.5), Found(LEFT, 0.6)] and others == [[], []]
