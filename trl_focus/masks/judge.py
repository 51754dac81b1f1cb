# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""From places to masks, and what is doubtful about them."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import PIL.Image

from .boxes import Found, assign
from .segment import Outline, segment
from .settings import MaskSettings


class Search(NamedTuple):
    """
    An image in which subjects are searched.

    Attributes:
        row (`int`):
            Number of its row.
        column (`str`):
            `"chosen"`, `"rejected"` or `"reference"`.
        label (`str`):
            What a message calls it.
        image (`PIL.Image.Image`):
            RGB.
        subjects (`list[str]`):
            What is searched, S of them.
    """

    row: int
    column: str
    label: str
    image: PIL.Image.Image
    subjects: list[str]


class Judged(NamedTuple):
    """
    What was found of the S subjects of a [`Search`].

    Attributes:
        outlines (`list[Outline | None]`):
            One for each subject, `None` where it was not found. Its score is the lower of two: how surely it was found, and how
            well it is outlined.
        doubts (`list[str]`):
            Why these can't be relied on; empty where they can.
    """

    outlines: list[Outline | None]
    doubts: list[str]


def judge(
    searches: Sequence[Search],
    candidates: Sequence[Sequence[Sequence[Found]]],
    settings: MaskSettings,
    batch_size: int = 8,
) -> list[Judged]:
    """
    Gives each subject of each image a place and outlines it, and says what can't be relied on: a subject that is not found,
    or in several places, an outline that is empty or unsure, and outlines that overlap.

    Args:
        searches (`Sequence[Search]`):
            N images with the subjects that are searched there.
        candidates (`Sequence[Sequence[Sequence[Found]]]`):
            For each image, for each of its subjects, the places where it may be.
        settings ([`MaskSettings`]):
            What counts as found, as absent, and as overlapping.
        batch_size (`int`, *optional*, defaults to `8`):
            Images in one forward pass.

    Returns:
        `list[Judged]`: One for each image.
    """
    assigned = [assign(found, settings.confidence) for found in candidates]
    boxes = [[place.box for place in places if place is not None] for places, _ in assigned]
    outlined = segment([search.image for search in searches], boxes, settings.segmenter, batch_size)
    judged = []
    for search, found, (places, others), outlines in zip(searches, candidates, assigned, outlined, strict=True):
        each = iter(outlines)
        own = [None if place is None else _with_score(next(each), place) for place in places]
        doubts = [
            *_of_places(search, found, places, others, settings),
            *_of_outlines(search, own, settings.confidence),
            *_of_overlap(search, own, settings.overlap),
        ]
        judged.append(Judged(own, [f"{search.label}: {doubt}" for doubt in doubts]))
    return judged


def _with_score(outline: Outline, place: Found) -> Outline:
    return outline._replace(score=min(outline.score, place.score))


def _of_places(
    search: Search,
    candidates: Sequence[Sequence[Found]],
    places: Sequence[Found | None],
    others: Sequence[Sequence[Found]],
    settings: MaskSettings,
) -> Iterator[str]:
    may_lack = settings.missing == "absent" and search.column != "reference"
    for subject, found, place, rest in zip(search.subjects, candidates, places, others, strict=True):
        if rest:
            scores = ", ".join(f"{each.score:.2f}" for each in (place, *rest))
            yield f"{len(rest) + 1} places may show {subject!r} (confidence {scores}), and one is searched"
        if place is None and not may_lack:
            yield f"{subject!r} is not found: {_why(found, settings.confidence)}"


def _why(found: Sequence[Found], least: float) -> str:
    """Why none of these places is a subject's."""
    if not found:
        return "nothing looks like it"
    best = max(each.score for each in found)
    if best < least:
        return f"what looks most like it has a confidence of {best:.2f}, below {least:g}"
    return f"what looks most like it, with a confidence of {best:.2f}, looks more like another subject"


def _of_outlines(search: Search, outlines: Sequence[Outline | None], confidence: float) -> Iterator[str]:
    for subject, outline in zip(search.subjects, outlines, strict=True):
        if outline is None:
            continue
        if not outline.mask_HW.any():
            yield f"the mask of {subject!r} is empty"
        elif outline.score < confidence:
            yield f"{subject!r} is outlined with a confidence of {outline.score:.2f}, below {confidence:g}"


def _of_overlap(search: Search, outlines: Sequence[Outline | None], most: float) -> Iterator[str]:
    present = [
        (subject, outline.mask_HW)
        for subject, outline in zip(search.subjects, outlines, strict=True)
        if outline is not None and outline.mask_HW.any()
    ]
    for (one, one_HW), (other, other_HW) in combinations(present, 2):
        share = (one_HW & other_HW).sum() / min(one_HW.sum(), other_HW.sum())
        if share > most:
            yield f"the masks of {one!r} and {other!r} overlap by {share:.0%} of the smaller"
