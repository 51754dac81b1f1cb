# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Where subjects may be, as boxes, and which of these is whose. Pure functions."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

SHARED = 0.5  # of the smaller of two boxes of one subject, from which on they are the same place
SAME = 0.7  # intersection over union from which on two subjects would stand in one place
RIVAL = 0.5  # of the score of a subject's place, from which on another may be meant as well


class Found(NamedTuple):
    """
    A place where a subject may be.

    Attributes:
        box (`tuple[float, float, float, float]`):
            Left, top, right, bottom in pixels.
        score (`float`):
            How surely it is there, in [0, 1].
    """

    box: Box
    score: float


def area(box: Box) -> float:
    """Pixels in a box; 0 where it is turned inside out."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def intersection(one: Box, other: Box) -> float:
    """Pixels that two boxes have in common."""
    return area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))


def over_union(one: Box, other: Box) -> float:
    """Intersection of two boxes over their union, in [0, 1]."""
    both = intersection(one, other)
    return both / max(area(one) + area(other) - both, 1e-9)


def over_smaller(one: Box, other: Box) -> float:
    """Intersection of two boxes over the smaller one, in [0, 1]: 1 where one lies in the other."""
    return intersection(one, other) / max(min(area(one), area(other)), 1e-9)


def distinct(found: Iterable[Found]) -> list[Found]:
    """The surest of each place, the surest first: a part, or a group that the place is part of, is the same place."""
    kept: list[Found] = []
    for each in sorted(found, key=lambda each: each.score, reverse=True):
        if area(each.box) > 0 and all(over_smaller(each.box, other.box) < SHARED for other in kept):
            kept.append(each)
    return kept


def assign(candidates: Sequence[Sequence[Found]], least: float) -> tuple[list[Found | None], list[list[Found]]]:
    """
    Gives each subject a place of its own, the surest first: what looks most like one subject is not another's.

    Args:
        candidates (`Sequence[Sequence[Found]]`):
            For each of S subjects the places where it may be.
        least (`float`):
            Score in [0, 1] below which a place does not count.

    Returns:
        `tuple`: for each subject its place, or `None`; and the other places that may be meant as well: they count, have at
        least half of the score of the subject's own, and nobody has taken them.
    """
    places: list[Found | None] = [None] * len(candidates)
    counting = [[each for each in found if each.score >= least] for found in candidates]
    every = [(each, subject) for subject, found in enumerate(counting) for each in found]
    for each, subject in sorted(every, key=lambda pair: pair[0].score, reverse=True):
        free = all(place is None or over_union(place.box, each.box) < SAME for place in places)
        if places[subject] is None and free:
            places[subject] = each
    taken = [place for place in places if place is not None]
    others = [
        [
            each
            for each in distinct(found)
            if place is not None
            and each.score >= RIVAL * place.score
            and all(over_smaller(each.box, other.box) < SHARED for other in taken)
        ]
        for place, found in zip(places, counting, strict=True)
    ]
    return places, others
