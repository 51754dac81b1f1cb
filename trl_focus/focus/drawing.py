# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Pictures of focus maps and of samples, with Pillow alone."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import PIL.ImageChops
import PIL.ImageDraw
import PIL.ImageFilter
import PIL.ImageFont


# From nothing to the most, evenly in lightness (inferno)
COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], float)
OPACITY = 0.7  # of a map over its image

SUBJECTS = ("#00a3e0", "#d6267f", "#f28e2b", "#59a14f", "#8e5bd0", "#b0a000")  # subjects take turns
TINT = 0.4  # opacity of a mask over its image

TITLES = {
    "prior": "prior",
    "matched": "matched",
    "structure": "structure",
    "leak": "leak",
    "detail": "detail",
    "weights": "weights W",
}
SIDE, GAP, LINE = 192, 8, 26  # pixels: longest side of a picture, room between pictures, height of a line of text
PAPER, INK, FAINT = "#ffffff", "#22262b", "#777f87"


def _font(size: int = 15) -> PIL.ImageFont.ImageFont:
    return PIL.ImageFont.load_default(size)


def colours(values: np.ndarray) -> np.ndarray:
    """RGB in [0, 255] of values in [0, 1], which are clipped; adds an axis of three at the end."""
    anchors = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(values, anchors, channel) for channel in COLOURS.T], axis=-1)


def overlay(image: PIL.Image.Image, map_HW: np.ndarray, top: float = 1.0) -> PIL.Image.Image:
    """
    Lays a map over the grey image, each cell in one colour.

    Args:
        image (`PIL.Image.Image`):
            The image that the map belongs to.
        map_HW (`np.ndarray` of shape `(H, W)`):
            Values from 0 to `top`, on the token grid.
        top (`float`, *optional*, defaults to `1.0`):
            Value of the brightest colour.

    Returns:
        `PIL.Image.Image`: RGB, of the image's size.
    """
    cells = colours(np.asarray(map_HW, float) / (top or 1)).round().astype(np.uint8)
    tint = PIL.Image.fromarray(cells).resize(image.size, PIL.Image.Resampling.NEAREST)
    return PIL.Image.blend(image.convert("L").convert("RGB"), tint, OPACITY)


def tinted(
    image: PIL.Image.Image, masks: Sequence[PIL.Image.Image | None], labels: Sequence[str | None] = ()
) -> PIL.Image.Image:
    """
    Lays subjects' masks over their image, each in its subject's colour, with an edge.

    Args:
        image (`PIL.Image.Image`):
            The image that the masks belong to.
        masks (`Sequence[PIL.Image.Image]`):
            Masks of the image's size, of which the brighter half counts; `None` for an absent subject.
        labels (`Sequence[str]`, *optional*):
            Texts in the subjects' colours, one below the other in the upper left corner; `None` takes no room.

    Returns:
        `PIL.Image.Image`: RGB, of the image's size.
    """
    drawn = image.convert("RGB")
    for number, mask in enumerate(masks):
        if mask is None:
            continue
        inside = mask.convert("L").point(lambda value: 255 * (value > 127))
        edge = PIL.ImageChops.subtract(inside, inside.filter(PIL.ImageFilter.MinFilter(5)))
        colour = PIL.Image.new("RGB", image.size, SUBJECTS[number % len(SUBJECTS)])
        drawn.paste(PIL.Image.blend(drawn, colour, TINT), mask=inside)
        drawn.paste(colour, mask=edge)
    draw, top = PIL.ImageDraw.Draw(drawn), 2
    for number, label in enumerate(labels):
        if label is not None:
            draw.text((4, top), label, SUBJECTS[number % len(SUBJECTS)], _font(13), stroke_width=2, stroke_fill=PAPER)
            top += 17
    return drawn


def sheet(
    rows: Sequence[Sequence[PIL.Image.Image | None]], titles: Sequence[str], captions: Sequence[str], foot: int = 0
) -> PIL.Image.Image:
    """
    Sets pictures in rows, under a title for each column, with a caption above each row.

    Args:
        rows (`Sequence[Sequence[PIL.Image.Image]]`):
            Pictures of each row, shrunk or enlarged to fit; `None` leaves a gap.
        titles (`Sequence[str]`), captions (`Sequence[str]`):
            One per column, one per row.
        foot (`int`, *optional*, defaults to `0`):
            Pixels left free at the bottom.
    """
    first = next(image for row in rows for image in row if image is not None)
    scale = SIDE / max(first.size)
    width, height = (max(1, round(side * scale)) for side in first.size)
    step = LINE + height + GAP
    page = PIL.Image.new("RGB", (GAP + len(titles) * (width + GAP), LINE + GAP + len(rows) * step + foot), PAPER)
    draw = PIL.ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (width + GAP) + width / 2, GAP), title, INK, _font(16), anchor="ma")
    for number, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        top = LINE + GAP + number * step
        draw.text((GAP, top + LINE - 4), _fitting(caption, page.width - 2 * GAP), FAINT, _font(), anchor="ls")
        for column, image in enumerate(row):
            if image is None:
                continue
            scale = min(width / image.width, height / image.height)
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            method = PIL.Image.Resampling.LANCZOS if scale < 1 else PIL.Image.Resampling.NEAREST
            page.paste(image.convert("RGB").resize(size, method), (GAP + column * (width + GAP), top + LINE))
    return page


def _fitting(text: str, width: int) -> str:
    font = _font()
    if font.getlength(text) <= width:
        return text
    return text[: bisect_right(range(len(text)), width, key=lambda n: font.getlength(text[:n] + "…")) - 1] + "…"


def focus_sheet(
    images: Sequence[PIL.Image.Image], maps: Mapping[str, np.ndarray], captions: Sequence[str]
) -> PIL.Image.Image:
    """
    Draws a row for each image: the image, then every part of its focus map laid over it, the weights last.

    Args:
        images (`Sequence[PIL.Image.Image]`):
            N images of one size.
        maps (`Mapping[str, np.ndarray]`, each of shape `(N, H, W)`):
            Parts in [0, 1], and `"weights"`, at least 0.
        captions (`Sequence[str]`):
            One per image.
    """
    others = [name for name in maps if name not in TITLES]
    names = [name for name in TITLES if name in maps and name != "weights"] + others + ["weights"]
    most = float(np.nanmax(maps["weights"])) or 1.0
    rows = [
        [image, *(overlay(image, maps[name][i], most if name == "weights" else 1.0) for name in names)]
        for i, image in enumerate(images)
    ]
    page = sheet(rows, ["image", *(TITLES.get(name, name) for name in names)], captions, foot=2 * LINE)
    draw, bar, top = PIL.ImageDraw.Draw(page), 160, page.height - LINE - GAP
    ramp = colours(np.linspace(0, 1, bar)[None]).round().astype(np.uint8)
    left = GAP + 24
    page.paste(PIL.Image.fromarray(ramp).resize((bar, 14)), (left, top))
    draw.text((left - 8, top + 7), "0", INK, _font(), anchor="rm")
    draw.text((left + bar + 8, top + 7), f"1 (weights: {most:.3g})", INK, _font(), anchor="lm")
    return page
