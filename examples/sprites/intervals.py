# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Sequence

import numpy as np
from scipy import stats


def interval(runs: Sequence[Sequence[float]], share: float = 0.95) -> tuple[float, float, float]:
    """
    Mean over runs and scenes, and its interval over both. What differs from run to run is told from few of them, so that
    its part comes from Student's t; a single run has the part of the scenes alone.

    Args:
        runs (`Sequence[Sequence[float]]`):
            For each seed of training a value for each scene; the scenes are the same in all.
        share (`float`, *optional*, defaults to `0.95`):
            How often such an interval holds the mean.

    Returns:
        `tuple[float, float, float]`: Mean, lower and upper end.
    """
    values = np.asarray(runs)
    n_runs, n_scenes = values.shape
    parts = [(values.mean(axis=0), n_scenes), (values.mean(axis=1), n_runs)]
    widths = [stats.t.ppf((1 + share) / 2, n - 1) * means.std(ddof=1) / n**0.5 for means, n in parts if n > 1]
    mean, width = float(values.mean()), float(np.hypot.reduce(widths))
    return mean, mean - width, mean + width


def further_run(means: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """
    Between what a further run on the same scenes is to be expected: wider than [`interval`], which is about the mean of all
    runs.

    Args:
        means (`Sequence[float]`):
            Mean over the scenes of each of two or more runs.
        share (`float`, *optional*, defaults to `0.95`):
            How often a further run lies there.

    Returns:
        `tuple[float, float]`: Lower and upper end.
    """
    n_runs, mean = len(means), float(np.mean(means))
    width = stats.t.ppf((1 + share) / 2, n_runs - 1) * np.std(means, ddof=1) * (1 + 1 / n_runs) ** 0.5
    return mean - float(width), mean + float(width)
