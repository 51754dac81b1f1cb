# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import math

import numpy as np
import pytest

from trl_focus.evaluation.statistics import LEAST_GROUPS, bootstrap, paired_difference


def test_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = bootstrap(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean()) and found.n == 400
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.02)
    assert bootstrap(values) == found


def test_level():
    values = np.random.default_rng(1).normal(size=200)
    wide, narrow = bootstrap(values), bootstrap(values, level=0.5)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_it_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [bootstrap(rng.normal(0, 1, 40)) for _ in range(100)]
    assert 88 <= sum(each.low < 0 < each.high for each in found) <= 99


def test_values_that_go_together_are_drawn_together():
    subjects = np.random.default_rng(2).normal(size=30)
    values, groups = np.repeat(subjects, 25), np.repeat(np.arange(30), 25).tolist()
    together, alone, few = bootstrap(values, groups), bootstrap(values), bootstrap(subjects)
    # 25 prompts that say the same thing tell no more than one
    assert (together.low, together.high) == pytest.approx((few.low, few.high))
    assert together.high - together.low == pytest.approx(5 * (alone.high - alone.low), rel=0.15)
    assert together.mean == pytest.approx(alone.mean)


def test_groups_of_other_sizes():
    values, groups = [1.0] * 9 + [0.0] * 10, [0] * 9 + list(range(1, 11))
    assert bootstrap(values, groups).mean == pytest.approx(9 / 19)
    # without the large group the mean is 0, and that is drawn in (10/11)^11 = 35 % of the samples
    assert bootstrap(values, groups, level=0.5).low == 0 < bootstrap(values, level=0.5).low


def test_few_groups_are_no_groups():
    values = np.random.default_rng(0).normal(size=40)
    groups = [i % (LEAST_GROUPS - 1) for i in range(40)]
    assert bootstrap(values, groups) == bootstrap(values)


def test_one_value():
    found = bootstrap([0.5])
    assert found.mean == 0.5 and found.n == 1 and math.isnan(found.low) and math.isnan(found.high)


def test_pairs():
    rng = np.random.default_rng(0)
    hardness = rng.normal(0, 10, 100)
    first = {row: hardness[row] + rng.normal(0, 0.1) for row in range(100)}
    second = {row: hardness[row] + 1 + rng.normal(0, 0.1) for row in range(100)}
    found = paired_difference(first, second)
    assert found.n == 100 and 0.95 < found.low < 1 < found.high < 1.05  # though each varies by 10
    assert paired_difference(first, {3: first[3] + 2, 200: 0.0}).mean == pytest.approx(2)
    assert paired_difference(first, {200: 0.0}) is None


def test_pairs_with_groups():
    first = dict.fromkeys(range(100), 0.0)
    second = {row: float(row // 10) for row in first}
    groups = {row: row // 10 for row in first}
    found = paired_difference(first, second, groups)
    assert found == bootstrap([second[row] for row in first], [groups[row] for row in first])
    assert found.high - found.low > 2 * (lambda e: e.high - e.low)(paired_difference(first, second))
