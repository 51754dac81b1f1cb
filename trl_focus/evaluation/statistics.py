# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""How sure a mean is, and a difference of two."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


RESAMPLES = 10_000
LEAST_GROUPS = 10  # with fewer, what is drawn again and again are hardly different samples


class Estimate(NamedTuple):
    """
    A mean with its interval.

    Attributes:
        mean (`float`):
            Mean of the values.
        low, high (`float`):
            Bounds of its interval; NaN where there are fewer than two values.
        n (`int`):
            Number of values.
    """

    mean: float
    low: float
    high: float
    n: int


def bootstrap(values: Sequence[float], groups: Sequence[Hashable] | None = None, level: float = 0.95) -> Estimate:
    """
    The mean of values, with its percentile bootstrap interval. The same values give the same interval.

    Prompts about the same subject rise and fall together. So where there are at least `LEAST_GROUPS` groups, whole groups are
    drawn: the interval is then that of other subjects, and not only of other prompts about these.

    Args:
        values (`Sequence[float]`):
            One value an item, at least one.
        groups (`Sequence[Hashable]`, *optional*):
            Which values belong together. Defaults to each alone.
        level (`float`, *optional*, defaults to `0.95`):
            Share of the resampled means that lie in the interval.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()), float("nan"), float("nan"), len(values))
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups or range(len(values))])
    if len(numbers) < LEAST_GROUPS:
        index = np.arange(len(values))
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    rng, means = np.random.default_rng(0), np.empty(RESAMPLES)
    for part in np.array_split(np.arange(RESAMPLES), 1 + len(sums) // 1000):  # which need little memory
        drawn = rng.integers(len(sums), size=(len(part), len(sums)))
        means[part] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], groups: Mapping[int, Hashable] | None = None
) -> Estimate | None:
    """
    The mean difference, second minus first, over the rows that both have. A prompt that is hard is hard for both: paired,
    that does not widen the interval.

    Args:
        first, second (`Mapping[int, float]`):
            Value of each row.
        groups (`Mapping[int, Hashable]`, *optional*):
            Group of each row, as in [`bootstrap`].

    Returns:
        [`Estimate`], or `None` if they have no row in common.
    """
    rows = sorted(first.keys() & second.keys())
    if not rows:
        return None
    return bootstrap([second[row] - first[row] for row in rows], groups and [groups[row] for row in rows])
