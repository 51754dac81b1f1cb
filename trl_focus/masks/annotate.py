# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Subject masks for a whole dataset. A row in which something is not sure is set aside with the reason, and not guessed."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import PIL.Image
from datasets import Features, List, Value

from .. import __version__
from ..data.images import decode_image, mask_to_array
from ..data.rows import inspect_row, reference_subject_indices, subject_count, subject_names
from ..data.schema import COLUMNS, FEATURES, check_columns, listed
from ..errors import InputError
from .boxes import Found
from .detect import detect
from .judge import Judged, Search, judge
from .match import match
from .settings import MaskSettings


IMAGES = ("chosen", "rejected", "reference")
MADE = Features(
    {
        **{f"{image}_masks": FEATURES[f"{image}_masks"] for image in IMAGES},
        **{f"{image}_confidences": List(Value("float32")) for image in IMAGES},
        "problems": List(Value("string")),
    }
)


def add_masks(
    dataset: datasets.Dataset, settings: MaskSettings | None = None, batch_size: int = 8
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    Makes the masks that the rows of a preference dataset lack. Masks that a row has are kept (`dataset.remove_columns` takes
    them out), but for those that this function made itself and set aside. `datasets` caches what is made: the same data with
    the same settings loads no model again.

    Args:
        dataset (`datasets.Dataset`):
            Rows of the preference schema, or without `rejected`, of which pairs are still to be made.
        settings ([`MaskSettings`], *optional*):
            How subjects are found.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows at a time, and images in one forward pass.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: The rows whose masks can be relied on, and those set aside. Both have all
        columns of the given dataset and `chosen_masks`, `rejected_masks`, `reference_masks`; `chosen_confidences`,
        `rejected_confidences`, `reference_confidences` (in [0, 1], 0 for a subject that was not found, `None` for masks that
        the row had), those of `rejected` only if there is one; `row`, the index in the given dataset; and `problems`, sentences
        that begin with the column's name, none for the first. Rows set aside have what was found nevertheless, to be looked at.

    Raises:
        ValueError, TypeError: If columns are missing or of another type.
        InputError: If the dataset has no names, or no references, by which to search.
        OSError, ImportError: If a model can't be loaded.
    """
    settings = settings or MaskSettings()
    searched = [name for name in ("chosen", "rejected") if name in dataset.column_names]
    check_columns(dataset, ("prompt", "chosen"))
    wanted = {"name": ("subjects", "reference_subjects"), "reference": ("references",)}[settings.by]
    if not {*wanted} & {*dataset.column_names}:
        raise InputError(
            f"subjects are searched by {settings.by}, and the dataset has no column `{wanted[0]}`; it has "
            f"{listed(dataset.column_names)}"
        )
    known = [name for name in dict.fromkeys((*COLUMNS, *MADE)) if name in dataset.column_names]
    made = (
        dataset.select_columns(known)
        .with_format("arrow")  # images stay encoded up to `_annotate`
        .map(
            _annotate,
            batched=True,
            batch_size=batch_size,
            remove_columns=known,
            features=MADE,
            # parts of the fingerprint
            fn_kwargs={
                "searched": searched,
                "settings": settings,
                "batch_size": batch_size,
                "version": __version__,
            },
            desc="Finding subjects",
        )
        .with_format(None)
    )
    if "rejected" not in searched:
        made = made.remove_columns(["rejected_masks", "rejected_confidences"])
    given = dataset.with_format(None).remove_columns([name for name in (*MADE, "row") if name in dataset.column_names])
    numbers = datasets.Dataset.from_dict({"row": list(range(len(dataset)))})
    joined = datasets.concatenate_datasets([given, made, numbers], axis=1)
    aside = [number for number, problems in enumerate(made["problems"]) if problems]
    return joined.select(sorted({*range(len(joined))} - {*aside})), joined.select(aside)


def _annotate(
    table, searched: Sequence[str], settings: MaskSettings, batch_size: int, version: str
) -> dict[str, list]:
    rows = table.to_pylist()
    made = [_made_before(row) for row in rows]
    for row, columns in zip(rows, made, strict=True):
        columns["problems"] = inspect_row({"rejected": row["chosen"], **row}).problems
        if not columns["problems"] and _lacks_masks(row, columns, searched):
            columns["problems"] = _unsearchable(row, settings.by)
    good = {number: _read(row, searched) for number, row in enumerate(rows) if not made[number]["problems"]}
    subjects = {number: subject_labels(rows[number]) for number in good}
    shown = {number: reference_subject_indices(rows[number]) for number in good}

    searches = [
        Search(number, "reference", f"`references`[{i}]", image, [subjects[number][subject]])
        for number, images in good.items()
        if made[number]["reference_masks"] is None and images["references"]
        for i, (image, subject) in enumerate(zip(images["references"], shown[number], strict=True))
    ]
    found = (
        _named(searches, settings, batch_size) if settings.by == "name" else [[[_whole(s.image)]] for s in searches]
    )
    _enter(made, searches, judge(searches, found, settings, batch_size))

    searches = [
        Search(number, column, f"`{column}`", images[column], subjects[number])
        for number, images in good.items()
        for column in searched
        if made[number][f"{column}_masks"] is None
    ]
    if settings.by == "name":
        found = _named(searches, settings, batch_size)
    else:
        references = {
            number: [
                (image, _mask(mask, image))
                for image, mask in zip(images["references"], made[number]["reference_masks"] or [], strict=True)
            ]
            for number, images in good.items()
        }
        found = match(
            [search.image for search in searches],
            [references[search.row] for search in searches],
            [(shown[search.row], len(search.subjects)) for search in searches],
            settings.matcher,
            batch_size,
        )
    _enter(made, searches, judge(searches, found, settings, batch_size))
    return {name: [columns[name] for columns in made] for name in MADE}


def _made_before(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a row's masks: all but those that were made here and could not be relied on."""
    columns = {name: row.get(name) for name in MADE}
    for image in IMAGES:
        if row.get("problems") and columns[f"{image}_confidences"] is not None:
            columns |= {f"{image}_masks": None, f"{image}_confidences": None}
    return columns


def _lacks_masks(row: Mapping[str, Any], columns: Mapping[str, Any], searched: Sequence[str]) -> bool:
    wanted = [*searched, *(["reference"] if row.get("references") else [])]
    return any(columns[f"{image}_masks"] is None for image in wanted)


def subject_labels(row: Mapping[str, Any]) -> list[str]:
    """Names of a good row's subjects in the order of its masks, or "subject 0" and so on where it has none."""
    names = subject_names(row)
    return [f"subject {number}" for number in range(subject_count(row))] if names is None else names


def _unsearchable(row: Mapping[str, Any], by: str) -> list[str]:
    """Why nothing can be searched in a row that is good otherwise."""
    if by == "reference":
        shown, count = {*reference_subject_indices(row)}, subject_count(row)
        if len(shown) < count or not shown:
            return [f"`references` show {len(shown)} of {count} subjects, and subjects are searched by reference"]
    if by == "name" and not subject_names(row):
        return ["`subjects` is empty, and subjects are searched by name"]
    return []


def _read(row: Mapping[str, Any], searched: Sequence[str]) -> dict[str, Any]:
    images = {name: decode_image(row[name]).convert("RGB") for name in searched}
    return {**images, "references": [decode_image(value).convert("RGB") for value in row.get("references") or []]}


def _named(searches: Sequence[Search], settings: MaskSettings, batch_size: int) -> list[list[list[Found]]]:
    asked = [(search.image, subject) for search in searches for subject in search.subjects]
    found = iter(detect([image for image, _ in asked], [name for _, name in asked], settings.detector, batch_size))
    return [[next(found) for _ in search.subjects] for search in searches]


def _whole(image: PIL.Image.Image) -> Found:
    """A reference shows its subject, and little besides."""
    return Found((0, 0, *image.size), 1.0)


def _mask(value: Any, image: PIL.Image.Image) -> np.ndarray:
    mask_HW = mask_to_array(value)
    return np.ones(image.size[::-1], np.float32) if mask_HW is None else mask_HW


def _enter(made: Sequence[dict[str, Any]], searches: Sequence[Search], judged: Sequence[Judged]):
    """Adds what was found to its rows; images of one list come one after the other."""
    for search, (outlines, doubts) in zip(searches, judged, strict=True):
        columns = made[search.row]
        masks = [None if outline is None else PIL.Image.fromarray(outline.mask_HW) for outline in outlines]
        scores = [0.0 if outline is None else outline.score for outline in outlines]
        for name, values in ((f"{search.column}_masks", masks), (f"{search.column}_confidences", scores)):
            columns[name] = [*(columns[name] or []), *values]
        columns["problems"] += doubts
