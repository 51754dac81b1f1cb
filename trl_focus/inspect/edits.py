# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What somebody who looked at preference pairs wants changed, and the dataset that comes of it. Pure functions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from ..errors import InputError


@dataclass(frozen=True)
class Edits:
    """
    Attributes:
        flipped (`frozenset[int]`):
            Rows whose chosen and rejected images change places.
        dropped (`frozenset[int]`):
            Rows to leave out.
    """

    flipped: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()


def toggle(edits: Edits, what: str, row: int) -> Edits:
    """
    Adds a row to the flipped or the dropped ones, or takes it out again.

    Args:
        edits ([`Edits`]):
            Those so far; they stay as they are.
        what (`str`):
            `"flipped"` or `"dropped"`.
        row (`int`):
            Number of the row.
    """
    return replace(edits, **{what: getattr(edits, what) ^ {row}})


def _other(name: str) -> str:
    """The column that a column changes places with: those of the chosen image with those of the rejected one."""
    for one, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if name == one or name.startswith(f"{one}_"):
            return other + name.removeprefix(one)
    return name


def _negative(margin: Any) -> Any:
    return -margin if isinstance(margin, int | float) else margin


def _told_of_the_other(provenance: Any) -> Any:
    """JSON in which seeds and scores of either image, as `trl-focus pairs` writes them, are the other's; all else as it is."""
    try:
        told = json.loads(provenance)
    except (TypeError, ValueError):
        return provenance
    sides = [name for name in ("seeds", "scores") if isinstance(told, dict) and isinstance(told.get(name), dict)]
    if not sides:
        return provenance
    swapped = {name: {_other(side): value for side, value in told[name].items()} for name in sides}
    return json.dumps({**told, **swapped}, ensure_ascii=False)


# Columns of no image of its own that say which of the two is the better one, and what they become
COMPARING = {"margin": _negative, "provenance": _told_of_the_other}


def flip(row: Mapping[str, Any]) -> dict[str, Any]:
    """
    A row whose chosen and rejected images, with all columns that begin with their names, have changed places. By how much the
    chosen one is better, `margin`, becomes its negative, and what `provenance` says of one is said of the other.
    """
    flipped = {name: row[_other(name)] if _other(name) in row else row[name] for name in row}
    return flipped | {name: turn(row[name]) for name, turn in COMPARING.items() if name in row}


def edited(dataset: datasets.Dataset, edits: Edits) -> datasets.Dataset:
    """
    The rows that are left, in their order, the flipped ones flipped. Images are not decoded, and the given dataset stays as it
    is.

    Args:
        dataset (`datasets.Dataset`):
            Rows of the preference schema.
        edits ([`Edits`]):
            Rows by their numbers in it.
    """
    names = dataset.column_names
    renamed = {name: _other(name) for name in names if _other(name) in names and _other(name) != name}
    kept = [row for row in range(len(dataset)) if row not in edits.dropped]
    flipped = [row for row in kept if row in edits.flipped]
    if not flipped:
        return dataset.select(kept)
    others = dataset.select(flipped).rename_columns(renamed)
    for name in COMPARING.keys() & {*names}:
        turned = {name: [COMPARING[name](value) for value in others[name]]}
        column = datasets.Dataset.from_dict(turned, datasets.Features({name: dataset.features[name]}))
        others = datasets.concatenate_datasets([others.remove_columns(name), column], axis=1)
    others = others.select_columns(names)
    if others.features != dataset.features:  # a column of nothing but None has a type of its own
        others = others.cast(dataset.features)
    joined = datasets.concatenate_datasets([dataset, others])
    place = {row: len(dataset) + number for number, row in enumerate(flipped)}
    return joined.select([place.get(row, row) for row in kept])


def save(dataset: datasets.Dataset, edits: Edits, folder: str) -> int:
    """
    Writes the rows that are left to a new folder, as `Dataset.save_to_disk` does.

    Args:
        dataset (`datasets.Dataset`), edits ([`Edits`]):
            As for [`edited`].
        folder (`str`):
            A folder that is not there yet: nothing is ever written over.

    Returns:
        `int`: Number of rows written.

    Raises:
        InputError: If the folder is there already, none is named, or no row is left.
    """
    if not folder.strip():
        raise InputError("Name a folder to save to.")
    path = Path(folder.strip()).expanduser()
    if path.exists():
        raise InputError(f"{path} is there already, and nothing is written over: name another folder.")
    rows = edited(dataset, edits)
    if not len(rows):
        raise InputError("Every pair is dropped: there is nothing to save.")
    rows.save_to_disk(path)
    return len(rows)
