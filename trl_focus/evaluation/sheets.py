# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Sheets of images: a row for each item, with its references and what each system drew."""

from collections.abc import Sequence
from typing import NamedTuple

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps


TILE, GAP, LINE = 200, 10, 20  # pixels
INK, FAINT, PAPER = (34, 38, 43), (110, 118, 126), (255, 255, 255)


class SheetRow(NamedTuple):
    """
    Attributes:
        caption (`str`):
            What stands above it.
        references (`Sequence[PIL.Image.Image]`):
            Its references.
        images (`Sequence[PIL.Image.Image | None]`):
            An image for each column of the sheet; `None` where there is none.
        notes (`Sequence[str]`):
            What stands below each of these.
    """

    caption: str
    references: Sequence[PIL.Image.Image]
    images: Sequence[PIL.Image.Image | None]
    notes: Sequence[str]


def draw_sheet(rows: Sequence[SheetRow], columns: Sequence[str]) -> PIL.Image.Image:
    """
    Draws a sheet.

    Args:
        rows (`Sequence[SheetRow]`):
            At least one row.
        columns (`Sequence[str]`):
            Names above the images.
    """
    n_references = max(len(row.references) for row in rows)
    width = GAP + (n_references + len(columns)) * (TILE + GAP)
    row_height = LINE + TILE + LINE + GAP
    sheet = PIL.Image.new("RGB", (width, LINE + GAP + len(rows) * row_height), PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(size=14)

    def left(column: int) -> int:
        return GAP + column * (TILE + GAP)

    for column, name in enumerate(["references", *[""] * (n_references - 1), *columns]):
        draw.text((left(column), GAP // 2), _fitting(name, font, TILE), INK, font)
    for number, row in enumerate(rows):
        top = LINE + GAP + number * row_height
        draw.text((GAP, top), _fitting(row.caption, font, width - 2 * GAP), FAINT, font)
        shown = [*row.references, *[None] * (n_references - len(row.references)), *row.images]
        for column, image in enumerate(shown):
            if image is not None:
                tile = PIL.ImageOps.contain(image, (TILE, TILE))
                sheet.paste(tile, (left(column) + (TILE - tile.width) // 2, top + LINE + (TILE - tile.height) // 2))
        for column, note in enumerate(row.notes, start=n_references):
            draw.text((left(column), top + LINE + TILE + 2), _fitting(note, font, TILE), INK, font)
    return sheet


def _fitting(text: str, font: PIL.ImageFont.FreeTypeFont, width: int) -> str:
    """A text, cut off where it would be wider than so many pixels."""
    text = " ".join(text.split())[:500]
    if font.getlength(text) <= width:
        return text
    while font.getlength(f"{text}…") > width and text:
        text = text[:-1]
    return f"{text}…"
