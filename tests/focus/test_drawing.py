# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import PIL.Image
import pytest

from trl_focus.focus.drawing import GAP, LINE, OPACITY, SIDE, colours, focus_sheet, overlay, sheet


GREY = PIL.Image.new("RGB", (64, 64), (128, 128, 128))


def pixel(image, x, y):
    return np.asarray(image)[y, x].astype(float)


def test_colours_grow_lighter():
    lightness = colours(np.linspace(0, 1, 33)) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all() and lightness[0] < 1 and lightness[-1] > 240
    assert np.array_equal(colours(np.array([-1.0, 2.0])), colours(np.array([0.0, 1.0])))


@pytest.mark.parametrize("top", [1.0, 4.0])
def test_overlay_colours_each_cell(top):
    cells = np.array([[0.0, 0.25], [0.5, 1.0]])
    drawn = overlay(GREY, cells * top, top)
    assert drawn.size == GREY.size
    for (row, column), value in np.ndenumerate(cells):
        expected = (1 - OPACITY) * 128 + OPACITY * colours(np.array(value))
        for x, y in ((0, 0), (31, 31)):
            np.testing.assert_allclose(pixel(drawn, column * 32 + x, row * 32 + y), expected, atol=1.5)


def test_the_image_shows_through():
    half = GREY.copy()
    half.paste((255, 0, 0), (0, 0, 32, 64))
    drawn = overlay(half, np.full((1, 1), 0.5))
    assert abs(pixel(drawn, 0, 0) - pixel(drawn, 63, 0)).max() > 10


def test_a_map_of_zeros_can_be_drawn():
    assert overlay(GREY, np.zeros((2, 2)), 0.0).getpixel((0, 0)) == overlay(GREY, np.zeros((2, 2))).getpixel((0, 0))


def test_sheet_places_pictures_in_rows_and_columns():
    red, blue = (PIL.Image.new("RGB", (32, 16), colour) for colour in ("red", "blue"))
    page = sheet([[red, None], [blue, red]], ["a", "b"], ["first", "second"])
    x, y = GAP + SIDE // 2, 2 * LINE + GAP + SIDE // 4
    step = LINE + SIDE // 2 + GAP
    assert page.getpixel((x, y)) == page.getpixel((x + SIDE + GAP, y + step)) == (255, 0, 0)
    assert page.getpixel((x, y + step)) == (0, 0, 255) and page.getpixel((x + SIDE + GAP, y)) == (255, 255, 255)


def test_long_captions_are_cut():
    lengths = [sheet([[GREY]], [""], ["word " * n]).size for n in (1, 500)]
    assert lengths[0] == lengths[1]


def test_focus_sheet_has_each_part_and_the_weights_last_by_their_most():
    maps = {"weights": np.full((2, 2, 2), 4.0), "own": np.zeros((2, 2, 2)), "prior": np.ones((2, 2, 2))}
    page = focus_sheet([GREY, GREY], maps, ["chosen", "rejected"])
    assert page.width == GAP + 4 * (SIDE + GAP)
    y = 2 * LINE + GAP + SIDE // 2
    image, prior, own, weights = (pixel(page, GAP + SIDE // 2 + i * (SIDE + GAP), y) for i in range(4))
    assert image.tolist() == [128] * 3
    assert prior.tolist() == weights.tolist() == pixel(overlay(GREY, np.ones((1, 1))), 0, 0).tolist()
    assert own.tolist() == pixel(overlay(GREY, np.zeros((1, 1))), 0, 0).tolist()
