# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import pytest

from trl_focus.pairs.corruption import CORRUPTIONS, LEAST_CHANGE, corrupt, fill


RED, BLUE, GROUND = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (0.7, 0.8, 0.6)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A striped red box at the left, and a plain blue one at the right, on a plain ground."""
    pixels_HWC = np.full((48, 64, 3), GROUND, np.float32)
    masks_SHW = np.zeros((2, 48, 64), np.float32)
    masks_SHW[0, 8:24, 4:20] = masks_SHW[1, 20:40, 40:56] = 1
    pixels_HWC[8:24, 4:20] = RED
    pixels_HWC[8:24:4, 4:20] = 0.05
    pixels_HWC[20:40, 40:56] = BLUE
    return pixels_HWC, masks_SHW


@pytest.mark.parametrize("subject", [0, 1])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_all_but_the_subject_stays(kind, subject):
    pixels_HWC, masks_SHW = scene()
    before = pixels_HWC.copy(), masks_SHW.copy()
    found = CORRUPTIONS[kind](pixels_HWC, masks_SHW, subject, np.random.default_rng(0))
    assert all(np.array_equal(*pair) for pair in zip((pixels_HWC, masks_SHW), before, strict=True))  # a pure function
    assert found.pixels_HWC.shape == pixels_HWC.shape and found.masks_SHW.shape == masks_SHW.shape
    assert found.pixels_HWC.min() >= -1e-6 and found.pixels_HWC.max() <= 1 + 1e-6
    own = np.maximum(masks_SHW[subject], found.masks_SHW[subject]) > 0.5
    if kind == "drop":  # and the edge of what is gone
        own = np.pad(own, 2)
        own = np.max([np.roll(own, (i, j), (0, 1)) for i in range(-2, 3) for j in range(-2, 3)], axis=0)[2:-2, 2:-2]
    # by no more than there is between 255 steps of brightness
    assert np.abs(found.pixels_HWC - pixels_HWC)[~own].max() < 0.003
    assert np.array_equal(found.masks_SHW[1 - subject], masks_SHW[1 - subject])


def test_the_same_numbers_spoil_alike():
    for kind in CORRUPTIONS:
        one, other = (CORRUPTIONS[kind](*scene(), 0, np.random.default_rng(3)) for _ in range(2))
        assert np.array_equal(one.pixels_HWC, other.pixels_HWC)


def inside(kind: str, subject: int = 0, seed: int = 0) -> np.ndarray:
    pixels_HWC, masks_SHW = scene()
    return CORRUPTIONS[kind](pixels_HWC, masks_SHW, subject, np.random.default_rng(seed)).pixels_HWC[
        masks_SHW[subject] > 0
    ]


def test_colour():
    for seed in range(8):
        mean = inside("colour", seed=seed).mean(axis=0)
        assert mean.argmax() != 0  # red no more
        assert mean.max() == pytest.approx(inside("warp").mean(axis=0).max(), abs=0.15)  # as bright as before


def test_grey_becomes_coloured():
    pixels_HWC, masks_SHW = np.full((8, 8, 3), 0.5, np.float32), np.ones((1, 8, 8), np.float32)
    found = CORRUPTIONS["colour"](pixels_HWC, masks_SHW, 0, np.random.default_rng(0)).pixels_HWC
    assert np.ptp(found.mean(axis=(0, 1))) > 0.2


def test_texture_makes_a_plain_subject_uneven():
    assert (
        inside("texture", subject=1).std(axis=0).max() > 0.15
        and np.ptp(scene()[0][20:40, 40:56], axis=(0, 1)).max() == 0
    )


def test_swap():
    assert inside("swap") == pytest.approx(np.tile(BLUE, (256, 1)), abs=0.01)
    stripes = inside("swap", subject=1).reshape(20, 16, 3)
    assert stripes.std(axis=0).max() > 0.1  # the other's stripes
    assert stripes.reshape(-1, 3).mean(axis=0).argmax() == 0
    with pytest.raises(ValueError, match="no other subject"):
        CORRUPTIONS["swap"](scene()[0], scene()[1][:1], 0, np.random.default_rng(0))


def test_blur():
    pixels_HWC, masks_SHW = scene()
    assert inside("blur").std(axis=0).max() < 0.5 * pixels_HWC[masks_SHW[0] > 0].std(axis=0).max()


def test_warp_moves_and_keeps_the_colours():
    pixels_HWC, masks_SHW = scene()
    found, own = inside("warp"), pixels_HWC[masks_SHW[0] > 0]
    assert np.abs(found - own).mean() > 0.05
    assert found.mean(axis=0) == pytest.approx(own.mean(axis=0), abs=0.08)
    assert (found[:, 1] < 0.15).all()  # and nothing of the ground


def test_duplicate():
    pixels_HWC, masks_SHW = scene()
    for seed in range(10):
        found = CORRUPTIONS["duplicate"](pixels_HWC, masks_SHW, 0, np.random.default_rng(seed))
        assert found.masks_SHW[0].sum() == 2 * masks_SHW[0].sum()
        assert not (found.masks_SHW.min(axis=0) > 0).any()
        second = found.pixels_HWC[(found.masks_SHW[0] - masks_SHW[0]) > 0]
        assert second == pytest.approx(pixels_HWC[masks_SHW[0] > 0])
    crowded = np.ones((1, 48, 64), np.float32)
    with pytest.raises(ValueError, match="no room"):
        CORRUPTIONS["duplicate"](pixels_HWC, crowded, 0, np.random.default_rng(0))


def test_drop():
    pixels_HWC, masks_SHW = scene()
    found = CORRUPTIONS["drop"](pixels_HWC, masks_SHW, 0, np.random.default_rng(0))
    assert not found.masks_SHW[0].any()
    expected = pixels_HWC.copy()
    expected[masks_SHW[0] > 0] = GROUND
    assert found.pixels_HWC == pytest.approx(expected, abs=1e-5)  # the ground alone, and nothing of the other subject


def test_fill_continues_what_is_seen():
    ramp = np.tile(np.linspace(0, 1, 33, dtype=np.float32)[None, :, None], (17, 1, 3))
    hidden = np.zeros((17, 33), np.float32)
    hidden[6:11, 12:20] = 1
    damaged = np.where(hidden[:, :, None] > 0, 5, ramp)
    found = fill(damaged, hidden)
    assert found[hidden == 0] == pytest.approx(ramp[hidden == 0])
    assert found == pytest.approx(ramp, abs=0.12)
    assert (fill(ramp, np.ones((17, 33))) == 0).all()


def test_draw_of_what_can_be():
    pixels_HWC, masks_SHW = scene()
    drawn = [corrupt(pixels_HWC, masks_SHW, tuple(CORRUPTIONS), np.random.default_rng(seed)) for seed in range(60)]
    assert {kind for _, kind, _ in drawn} == {*CORRUPTIONS} and {subject for *_, subject in drawn} == {0, 1}
    for found, _, subject in drawn:
        change = np.abs(found.pixels_HWC - pixels_HWC).sum() / 3
        assert change >= LEAST_CHANGE * masks_SHW[subject].sum()


def test_what_does_not_show_is_not_drawn():
    pixels_HWC, masks_SHW = scene()
    for seed in range(5):  # a plain subject that is bent looks as before
        assert corrupt(pixels_HWC, masks_SHW, ("warp",), np.random.default_rng(seed))[2] == 0
    with pytest.raises(ValueError, match="no subject can be spoilt by warp so that it shows"):
        corrupt(pixels_HWC, masks_SHW[1:], ("warp",), np.random.default_rng(0))
    with pytest.raises(ValueError, match="no subject has a mask"):
        corrupt(pixels_HWC, 0 * masks_SHW, ("drop",), np.random.default_rng(0))
