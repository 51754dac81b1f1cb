# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Picture sheets of masks, for a look at them before they are trained on."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import PIL.Image

from ..data.images import decode_image
from ..data.rows import check_row, reference_subject_indices
from ..focus.drawing import SIDE, sheet, tinted
from .annotate import IMAGES, subject_labels


ROWS = 12  # on one sheet
CONFIDENCES = tuple(f"{image}_confidences" for image in IMAGES)


def draw_masks(row: Mapping[str, Any]) -> list[PIL.Image.Image]:
    """
    Draws a row's masks over its images, with the subjects' names and confidences.

    Args:
        row (`Mapping`):
            A row as [`add_masks`] returns it.

    Returns:
        `list[PIL.Image.Image]`: Chosen, rejected if there is one, and the references, at most `SIDE` pixels wide and high; grey
        for an image that can't be decoded.
    """
    references = row.get("references") or []
    shown = _columns(row)
    if check_row({"rejected": row["chosen"], **row}):  # which subject is where may not be known
        return [_drawn(image, [], []) for image in (*(row[name] for name in shown), *references)]
    subjects, of_references = subject_labels(row), reference_subject_indices(row)
    drawn = []
    for image in shown:
        masks, scores = row[f"{image}_masks"], row[f"{image}_confidences"]
        drawn.append(_drawn(row[image], masks or [], _labels(subjects, scores) if masks else []))
    masks = row["reference_masks"] or [None] * len(references)
    scores = row["reference_confidences"] or [None] * len(references)
    for image, mask, score, subject in zip(references, masks, scores, of_references, strict=True):
        before = [None] * subject  # a subject has one colour in all images
        drawn.append(_drawn(image, [*before, mask], [*before, *_labels([subjects[subject]], [score])]))
    return drawn


def _columns(row: Container[str]) -> list[str]:
    return [name for name in ("chosen", "rejected") if name in row]


def _labels(subjects: Sequence[str], scores: Sequence[float | None] | None) -> list[str]:
    scores = scores or [None] * len(subjects)
    return [
        subject if score is None else f"{subject} {score:.2f}" for subject, score in zip(subjects, scores, strict=True)
    ]


def _drawn(value: Any, masks: Sequence[Any], labels: Sequence[str | None]) -> PIL.Image.Image:
    try:
        image = decode_image(value).convert("RGB")
    except (ValueError, TypeError):
        return PIL.Image.new("RGB", (SIDE, SIDE), "lightgrey")
    image.thumbnail((SIDE, SIDE))
    small = [None if mask is None else decode_image(mask).convert("L").resize(image.size) for mask in masks]
    return tinted(image, small, labels)


def _least(row: Mapping[str, Any]) -> float:
    """The lowest confidence of a row; 1 where all of its masks were given."""
    return min((score for name in CONFIDENCES for score in row.get(name) or []), default=1.0)


def _caption(row: Mapping[str, Any]) -> str:
    if not row["problems"]:
        return f"row {row['row']}, confidence {_least(row):.2f}: {row['prompt']}"
    more = f" (and {len(row['problems']) - 1} more)" if len(row["problems"]) > 1 else ""
    return f"row {row['row']}: {row['problems'][0]}{more}"


def write_sheets(dataset: datasets.Dataset, folder: Path, name: str, most: int = 120) -> int:
    """
    Writes picture sheets of rows, `<name>-00.png` and on, the least sure rows first.

    Args:
        dataset (`datasets.Dataset`):
            Rows as [`add_masks`] returns them.
        folder (`Path`):
            Where to; it is made if it isn't there.
        name (`str`):
            What the files' names begin with.
        most (`int`, *optional*, defaults to `120`):
            Rows that are drawn.

    Returns:
        `int`: Number of rows drawn.
    """
    made = [name for name in CONFIDENCES if name in dataset.column_names]
    least = [_least(row) for row in dataset.select_columns(made)]
    order = sorted(range(len(dataset)), key=least.__getitem__)[:most]
    encoded = dataset.with_format("arrow")  # an image that can't be decoded is no reason to stop
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(order), ROWS)):
        rows = [encoded[i].to_pylist()[0] for i in order[start : start + ROWS]]
        pictures = [draw_masks(row) for row in rows]
        columns = max(map(len, pictures))
        filled = [[*row, *[None] * (columns - len(row))] for row in pictures]
        images = _columns(dataset.column_names)
        titles = [*images, *(f"reference {i}" for i in range(columns - len(images)))]
        sheet(filled, titles, [_caption(row) for row in rows]).save(folder / f"{name}-{number:02d}.png")
    return len(order)
