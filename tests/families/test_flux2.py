# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import pytest

from tests.fixtures.families import check_calls, family_of, picture


@pytest.mark.parametrize("name", ["flux2", "flux2_klein"])
def test_references_larger_than_the_limit(name, monkeypatch):
    # In fp32, convolutions of a megapixel depend on the memory layout of the pixels by this much
    check_calls(family_of(name), name, [picture(1300, 1000, 0)], 96, 64, monkeypatch, tolerance=2e-3)


@pytest.mark.parametrize("resolution", [None, 512])
def test_references_are_limited_and_small_ones_kept_or_refused(resolution):
    rule = family_of("flux2_klein").reference_rule(resolution)
    assert rule.size(100, 71) == (64, 96)
    assert 0.9 * (resolution or 1024) ** 2 < rule.size(1300, 1000)[0] * rule.size(1300, 1000)[1]
    assert rule.size(1300, 1000)[0] * rule.size(1300, 1000)[1] <= (resolution or 1024) ** 2
    with pytest.raises(ValueError, match="too small"):
        rule.size(63, 200)
