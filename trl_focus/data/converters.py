# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Datasets of other layouts, in the preference schema."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Features, Image, IterableDataset

from .schema import FEATURES, REQUIRED_COLUMNS, listed, require_dataset


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def _winner(row: int | None, label_0: Any, label_1: Any = None, has_label: Any = None) -> int | None:
    """Which of two images, 0 or 1, was preferred; `None` for a tie and where nobody was asked."""
    if label_0 is None or (has_label is not None and not has_label):
        return None
    if label_0 not in (0, 0.5, 1):
        raise ValueError(f"row {row}: `label_0` is {label_0!r}; Pick-a-Pic's labels are 0, 0.5 (a tie) and 1")
    if label_1 is not None and label_1 != 1 - label_0:
        raise ValueError(f"row {row}: `label_0` is {label_0!r} and `label_1` {label_1!r}; they have to add up to 1")
    return {0: 1, 0.5: None, 1: 0}[label_0]


def _decided(*values: Any, labels: list[str], ties: str) -> bool:
    """Whether a row of a stream has a winner. `values` are the row's labels and its number."""
    *values, row = values
    decided = _winner(row, **dict(zip(labels, values, strict=True))) is not None
    if ties == "error" and not decided:
        raise ValueError(f"row {row} is a tie: neither image was preferred. Pass ties='drop' to leave such rows out")
    return decided


def _to_pair(row: Mapping[str, Any], labels: list[str]) -> dict[str, Any]:
    images = [row["jpg_0"], row["jpg_1"]]
    chosen, rejected = images if _winner(None, **{name: row[name] for name in labels}) == 0 else images[::-1]
    return {"prompt": row["caption"], "chosen": _stored(chosen), "rejected": _stored(rejected)}


def _stored(image: Any) -> Any:
    """Bytes as [`datasets.Image`] stores them; anything else is left to it."""
    return {"bytes": image, "path": None} if isinstance(image, bytes) else image


def _undecoded(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    if dataset.features is not None:
        for name in ("jpg_0", "jpg_1"):
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def from_pick_a_pic(
    dataset: Dataset | IterableDataset, ties: Literal["error", "drop"] = "error"
) -> Dataset | IterableDataset:
    """
    Converts Pick-a-Pic's layout. The files of the images are passed on as they are, not decoded.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Columns `jpg_0`, `jpg_1` (bytes or images), `label_0` (1: the first image was preferred, 0: the second, 0.5: a
            tie) and `caption`, optionally `label_1` and `has_label`. A row without a label is a tie.
        ties (`str`, *optional*, defaults to `"error"`):
            Whether ties raise (`"error"`) or are left out (`"drop"`).

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: Columns `prompt`, `chosen` and `rejected`.

    Raises:
        ValueError: If columns are missing, no row is left, `ties` is another value, or rows are ties or have other
            labels; names the rows. On a stream, rows raise when they are met.
        TypeError: If this is not a dataset.
    """
    require_dataset(dataset)
    if ties not in ("error", "drop"):
        raise ValueError(f"`ties` is {ties!r}: pass 'error' or 'drop'")
    names = dataset.column_names or list(next(iter(dataset), ()))
    needed = ["jpg_0", "jpg_1", "caption", "label_0"]
    if missing := [name for name in needed if name not in names]:
        raise ValueError(f"the dataset lacks Pick-a-Pic's columns {listed(missing)}; it has {listed(names) or 'none'}")
    labels = [name for name in ("label_0", "label_1", "has_label") if name in names]
    columns = needed[:3] + labels
    dataset = dataset.select_columns(columns).with_format(None)
    features = Features({name: FEATURES[name] for name in REQUIRED_COLUMNS})
    to_pair = partial(_to_pair, labels=labels)

    if isinstance(dataset, IterableDataset):
        decided = partial(_decided, labels=labels, ties=ties)
        dataset = _undecoded(dataset).filter(decided, with_indices=True, input_columns=labels)
        # `map(features=...)` on a stream takes the values for decoded; `cast` decodes them when they are read.
        return dataset.map(to_pair, remove_columns=columns).cast(features)

    winners = [_winner(i, **row) for i, row in enumerate(dataset.select_columns(labels))]
    tied = [i for i, winner in enumerate(winners) if winner is None]
    if tied and ties == "error":
        raise ValueError(
            f"{len(tied)} of {len(dataset)} rows are ties, where neither image was preferred: rows {listed(tied)}. "
            "Pass ties='drop' to leave them out"
        )
    if len(tied) == len(dataset):
        raise ValueError("the dataset has no row with a preferred image")
    dataset = _undecoded(dataset.select([i for i, winner in enumerate(winners) if winner is not None]))
    return dataset.map(to_pair, remove_columns=columns, features=features, desc="Converting Pick-a-Pic")


def _entries(folder: Path) -> list[Path]:
    """A folder's entries by name, without the hidden ones that file managers leave behind."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """A folder's files by their names without the suffix."""
    files = {}
    for file in _entries(folder):
        if not file.is_file() or file.suffix.lower() not in suffixes:
            raise ValueError(f"{file} does not belong there: {folder} holds files that end in {', '.join(suffixes)}")
        if file.stem in files:
            raise ValueError(f"{files[file.stem]} and {file} have one name: keep one of them")
        files[file.stem] = file
    return files


def _file_lists(folder: Path, names: set[str]) -> dict[str, list[str]]:
    """The image files of each of a folder's folders."""
    for entry in _entries(folder):
        if not entry.is_dir() or entry.name not in names:
            raise ValueError(
                f"{entry} belongs to no pair: {folder} holds a folder per name that `chosen` has a file for"
            )
    return {entry.name: [str(file) for file in _files(entry, IMAGE_SUFFIXES).values()] for entry in _entries(folder)}


def _read_prompt(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error


def from_folder(path: str | Path) -> Dataset:
    """
    Reads pairs from a local folder:

        chosen/NAME.png  rejected/NAME.png  prompts/NAME.txt
        references/NAME/*  reference_masks/NAME/*  chosen_masks/NAME/*  rejected_masks/NAME/*  (optional)

    Images are png, jpg, jpeg, webp or bmp files. Those of a list are ordered by their file names, as text: `10.png` comes
    before `2.png` and after `02.png`. A black mask says that its subject is absent. Hidden files are passed over.

    Args:
        path (`str` or `Path`):
            The folder.

    Returns:
        `datasets.Dataset`: Rows of the preference schema in the order of their names, with the images as paths. It has
        the optional columns whose folders exist, with None for a name that has no files there.

    Raises:
        ValueError: If a folder or a file of a pair is missing, two files have one name, or there are files that belong
            to no pair; names the files.
    """
    root = Path(path).absolute()
    suffixes = {"chosen": IMAGE_SUFFIXES, "rejected": IMAGE_SUFFIXES, "prompts": (".txt",)}
    if missing := [str(root / folder) for folder in suffixes if not (root / folder).is_dir()]:
        raise ValueError(f"these folders are missing: {listed(missing)}")
    files = {folder: _files(root / folder, allowed) for folder, allowed in suffixes.items()}
    names = sorted(set().union(*files.values()))
    if not names:
        raise ValueError(f"{root} holds no pairs: chosen, rejected and prompts are empty")
    if lacking := [f"{folder}/{name}" for name in names for folder in files if name not in files[folder]]:
        raise ValueError(
            f"{root} has incomplete pairs: there is no file for {listed(lacking)}. Each pair is chosen/NAME.png, "
            "rejected/NAME.png and prompts/NAME.txt"
        )

    columns: dict[str, list] = {"prompt": [_read_prompt(files["prompts"][name]) for name in names]}
    for column in ("chosen", "rejected"):
        columns[column] = [str(files[column][name]) for name in names]
    for column in ("references", "reference_masks", "chosen_masks", "rejected_masks"):
        if (root / column).is_dir():
            lists = _file_lists(root / column, set(names))
            columns[column] = [lists.get(name) or None for name in names]
    return Dataset.from_dict(columns, features=Features({column: FEATURES[column] for column in columns}))
