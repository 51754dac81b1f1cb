# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Which image is better: a weighted sum of scores."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from ..evaluation.benchmark import Item
from ..evaluation.instances import FindInstances, usable
from ..evaluation.scorers import Scorer


class Judgement(NamedTuple):
    """
    Attributes:
        total (`float`):
            The weighted sum; more is better.
        scores (`dict[str, float]`):
            All scores that are finite.
        masks (`list[np.ndarray | None]`, *optional*):
            Mask of each subject in the image, `None` where a subject is missing. Only where what finds subjects tells them all
            apart by masks, without a doubt.
    """

    total: float
    scores: dict[str, float]
    masks: list[np.ndarray | None] | None


Judge = Callable[[PIL.Image.Image, Item], Judgement]


def weighted_judge(scorers: Sequence[Scorer], weights: Mapping[str, float], find: FindInstances) -> Judge:
    """
    A judge by scores.

    Args:
        scorers (`Sequence[Scorer]`):
            What is measured.
        weights (`Mapping[str, float]`):
            Weight of each score that counts: below 0 for one of which less is better.
        find (`FindInstances`):
            What finds subjects in an image.

    Returns:
        `Judge`: A score that an image lacks, as leakage where no subject was found, counts 0. It raises a `ValueError` for an
        image that has none of them, or one that is not finite.
    """

    def judge(image: PIL.Image.Image, item: Item) -> Judgement:
        found = find(image, item)
        instances = None if found is None else usable(found, image, item)[0]
        scores = {}
        for scorer in scorers:
            scores.update(scorer(image, item, instances))
        counted = {name: weight * scores[name] for name, weight in weights.items() if name in scores}
        if not counted:
            raise ValueError(f"an image has no score {', '.join(weights)}; it has {', '.join(scores)}")
        if broken := [name for name in counted if not math.isfinite(scores[name])]:
            raise ValueError(f"of an image, {broken[0]} is {scores[broken[0]]}")
        masks = None
        sure = found is not None and not any(each.doubt for each in found)
        if sure and all(each.subject is not None and each.mask is not None for each in instances):
            known = {each.subject: each.mask for each in instances}
            masks = [known.get(subject) for subject in range(len(item.subjects))]
        finite = {name: float(value) for name, value in scores.items() if math.isfinite(value)}
        return Judgement(sum(counted.values()), finite, masks)

    return judge
