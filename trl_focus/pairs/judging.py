# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Which image is better: a weighted sum of scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from ..evaluation.benchmark import Item
from ..evaluation.instances import FindInstances
from ..evaluation.measuring import score_image
from ..evaluation.scorers import Scorer


class Judgement(NamedTuple):
    """
    Attributes:
        total (`float`):
            The weighted sum; more is better.
        scores (`dict[str, float]`):
            All scores.
        masks (`list[np.ndarray | None]`, *optional*):
            Mask of each subject in the image, where what finds subjects knows them; `None` where a subject is missing.
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
        `Judge`: It raises a `ValueError` for an image that lacks a score, and says why.
    """

    def judge(image: PIL.Image.Image, item: Item) -> Judgement:
        found = find(image, item)
        scores, remarks = score_image(image, item, scorers, lambda image, item: found)
        if missing := [name for name in weights if name not in scores]:
            raise ValueError(
                f"an image has no score {', '.join(missing)}" + (f" ({'; '.join(remarks)})" if remarks else "")
            )
        masks = None
        if found and all(each.subject is not None and each.mask is not None for each in found):
            known = {each.subject: each.mask for each in found}
            masks = [known.get(subject) for subject in range(len(item.subjects))]
        return Judgement(sum(weight * scores[name] for name, weight in weights.items()), scores, masks)

    return judge
