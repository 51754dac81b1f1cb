# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.


import numpy as np
import pytest

from trl_focus.data.layout import Layout, LayoutRule, target_size
from trl_focus.families.base import ReferenceRule


class Square(ReferenceRule):
    """Takes any reference that is square."""

    def size(self, width, height):
        if width != height:
            raise ValueError("not square")
        return height // 2, width // 2


# ---- Target size ----


@pytest.mark.parametrize("multiple", [8, 16, 32])
@pytest.mark.parametrize("resolution", [512, 1024])
def test_target_size_keeps_area_and_aspect(resolution, multiple):
    sizes = set()
    for aspect in np.geomspace(1 / 4, 4, 501):
        for scale in (100, 1000, 5000):
            height, width = target_size(round(scale * aspect), scale, resolution, multiple)
            assert height % multiple == width % multiple == 0
            assert 1 / 1.07 < height * width / resolution**2 < 1.07
            assert 1 / 1.07 < width / height / (round(scale * aspect) / scale) < 1.07
            sizes.add((height, width))
    assert len(sizes) < 60


def test_target_size_is_height_first():
    assert target_size(300, 300, 512, 16) == (512, 512)
    assert target_size(400, 100, 512, 16) == (256, 1024)
    assert target_size(100, 400, 512, 16) == (1024, 256)
    assert target_size(1536, 1024, 512, 8) == (416, 640)  # 418.0 x 627.1, to multiples of 32


@pytest.mark.parametrize("resolution, multiple", [(16, 16), (64, 16), (64, 8), (100, 16), (512, 16), (8, 16)])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (20000, 10), (3, 2), (64, 4096)])
def test_target_size_is_never_zero(size, resolution, multiple):
    for side in target_size(*size, resolution, multiple):
        assert side >= multiple and side % multiple == 0


# ---- Layout rule ----


def test_layout_rule():
    rule = LayoutRule(64, 16, Square())
    assert rule((128, 128), (64, 64)) == Layout((64, 64), ())
    assert rule((400, 100), (410, 100), [(80, 80), (64, 64)]) == Layout((32, 128), ((40, 40), (32, 32)))
    assert LayoutRule(64, 16, stretch=False)((400, 100), (100, 100)).size == (32, 128)  # as chosen
    with pytest.raises(ValueError, match="^`references` holds .* refuses: not square"):
        rule((64, 64), (64, 64), [(64, 64), (64, 32)])
    with pytest.raises(ValueError, match="^`references` is not empty"):
        LayoutRule(64, 16)((64, 64), (64, 64), [(64, 64)])


@pytest.mark.parametrize("counts, takes", [((0, 1), "at most 1"), ((1, None), "at least 1"), ((2, 2), "exactly 2")])
def test_number_of_references(counts, takes):
    rule = LayoutRule(64, 16, Square(), reference_counts=counts)
    for number in range(4):
        if counts[0] <= number <= (counts[1] or number):
            assert len(rule((64, 64), (64, 64), [(64, 64)] * number).reference_sizes) == number
        else:
            with pytest.raises(ValueError, match=f"^`references` holds {number or 'no'} images.* model takes {takes}"):
                rule((64, 64), (64, 64), [(64, 64)] * number)


@pytest.mark.parametrize(
    "rejected, fits", [((109, 100), True), ((92, 100), True), ((111, 100), False), ((90, 100), False)]
)
def test_aspect_ratios_of_a_pair(rejected, fits):
    LayoutRule(64, 16, stretch=False)((100, 100), rejected)
    if fits:
        LayoutRule(64, 16)((100, 100), rejected)
    else:
        with pytest.raises(ValueError, match=f"^`rejected` is {rejected[0]}x100 .* `chosen` 100x100: the aspect"):
            LayoutRule(64, 16)((100, 100), rejected)


# ---- Batch sampler ----
