# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Preference pairs by name: from the Hub, or from a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from ..errors import InputError, is_input, refusals
from .converters import from_folder
from .paths import check_files, confined, places_of, saved_files
from .schema import COLUMNS, listed


PreferenceDataset = datasets.Dataset | datasets.IterableDataset

MIXTURE_FIELDS = ("path", "name", "split", "revision", "columns", "fraction")


def map_columns(dataset: PreferenceDataset, columns: Mapping[str, str]) -> PreferenceDataset:
    """
    Gives columns the names of the preference schema, and leaves out those that are not in it.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Pairs with columns of any names.
        columns (`Mapping[str, str]`):
            For names of the schema, the dataset's own: `{"prompt": "caption"}`. Others keep their names.

    Raises:
        InputError: If a name is not one of the schema's, or the dataset has no such column.
    """
    names = dataset.column_names or list(next(iter(dataset), ()))
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise InputError(
            f"`columns` names {listed(unknown)}, and the schema has {', '.join(COLUMNS)}. It is written as "
            "{name in the schema: name in the dataset}"
        )
    if missing := [own for own in columns.values() if own not in names]:
        raise InputError(f"`columns` names {listed(missing)}, and the dataset has {listed(names)}")
    if len({*columns.values()}) < len(columns):
        raise InputError(f"`columns` gives one column two names: {dict(columns)}")
    unmapped = [name for name in COLUMNS if name in names and name not in columns and name not in columns.values()]
    dataset = dataset.select_columns([*columns.values(), *unmapped])
    return dataset.rename_columns({own: name for name, own in columns.items() if own != name})


def _part(whole: Any, split: str) -> datasets.Dataset:
    """A split of what lies in a local folder, where no other split than train is one whole dataset."""
    parts = whole if isinstance(whole, datasets.DatasetDict) else {"train": whole}
    if split not in parts:
        raise InputError(f"there is no split {split!r}; it has {listed(parts)}")
    return parts[split]


def _is_pair_folder(folder: Path) -> bool:
    described = any((folder / f"metadata.{suffix}").exists() for suffix in ("csv", "jsonl", "parquet"))
    return (folder / "chosen").is_dir() and (folder / "rejected").is_dir() and not described


def _load_folder(folder: Path, split: str) -> datasets.Dataset | None:
    """What `load_dataset` does not read; `None` for what it does."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        check_files(saved_files(folder), places_of(str(folder), local=True))
        try:
            return _part(datasets.load_from_disk(folder), split)
        except IndexError as error:  # what it makes of a dataset that was saved without a row
            raise InputError(f"{folder} holds no rows: there is nothing to train on") from error
    return _part(from_folder(folder), split) if _is_pair_folder(folder) else None


def load_preferences(
    path: str,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    columns: Mapping[str, str] | None = None,
) -> PreferenceDataset:
    """
    Loads pairs from the Hub or from a folder, as data and never as code. Files and images that are paths to somewhere else
    than the dataset's own folder are refused.

    Args:
        path (`str`):
            Id on the Hub, or a folder: one that [`from_folder`] reads, one of `Dataset.save_to_disk`, or one of parquet
            files or images that `datasets.load_dataset` reads.
        name (`str`, *optional*):
            Configuration of the dataset.
        split (`str`, *optional*, defaults to `"train"`):
            Split to load.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read rows only as they are needed.
        columns (`Mapping[str, str]`, *optional*):
            For names of the preference schema, the dataset's own: `{"prompt": "caption"}`.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: The split. Its rows are checked where they are used.

    Raises:
        InputError: If there is no such dataset, configuration, split, revision or column, or it can't be read.
    """
    local = Path(path).expanduser()
    dataset, is_local = None, local.is_dir()
    if is_local:
        path = str(local)
        if revision is not None:
            raise InputError(f"{path} is a folder, and only datasets on the Hub have a revision ({revision!r})")
        with refusals():
            dataset = _load_folder(local, split)
    elif local.exists() or path.startswith((".", "/", "~")):
        raise InputError(f"{path} is no folder. Give the folder of a dataset, or its id on the Hub")
    places = places_of(path, is_local)
    if dataset is not None:
        if name is not None:
            raise InputError(f"{path} has no configurations, and {name!r} was asked for")
        dataset = dataset.to_iterable_dataset() if streaming else dataset
    else:
        dataset = _load(path, name, split, revision, streaming, places)
    dataset = confined(dataset, places)
    return map_columns(dataset, columns) if columns else dataset


def _load(
    path: str, name: str | None, split: str, revision: str | None, streaming: bool, places: Sequence[str]
) -> PreferenceDataset:
    try:
        with refusals():
            # As `datasets.load_dataset` does it, which looks at no file before it reads it
            builder = datasets.load_dataset_builder(path, name=name, revision=revision)
            for files in (builder.config.data_files or {}).values():
                check_files(files, places)
            if streaming:
                return builder.as_streaming_dataset(split=split)
            builder.download_and_prepare()
            return builder.as_dataset(split=split)
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and not is_input(cause):
            raise
        raise InputError(f"{path} can't be read: {cause}") from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise InputError(
            f"{path} is a dataset with a loading script, which is code, and is not run. Convert it to Parquet: "
            "`dataset.push_to_hub` writes that"
        ) from error
    except InputError as error:
        said = str(error).rstrip(".")
        if isinstance(error.__cause__, DatasetNotFoundError):
            said += (
                f". `{path}` is no folder here either. Of a private or gated dataset, `hf auth login` may be missing"
            )
        raise InputError(f"{path} can't be read: {said}") from error


def load_mixture(parts: Sequence[Mapping[str, Any]], streaming: bool = False) -> PreferenceDataset:
    """
    Loads several datasets and joins them, one after the other.

    Args:
        parts (`Sequence[Mapping]`):
            Arguments of [`load_preferences`] for each, and optionally `fraction`, its share of the mixture: then each gives its
            first rows, as many as no dataset runs out. Shares count relative to one another.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to stream them all.

    Raises:
        InputError: If a part can't be loaded, has unknown fields, or the parts don't fit together.
    """
    for part in parts:
        if not isinstance(part.get("path"), str) or any(field not in MIXTURE_FIELDS for field in part):
            raise InputError(
                f"an entry of `datasets` is {dict(part)}: it needs `path`, an id or a folder, and may have "
                f"{', '.join(MIXTURE_FIELDS[1:])}"
            )
    fractions = [part.get("fraction") for part in parts]
    given = [fraction for fraction in fractions if fraction is not None]
    if not all(isinstance(fraction, int | float) for fraction in given):
        raise InputError(f"`fraction` of `datasets` is {listed(given)}, which are not all numbers")
    if given and (len(given) < len(parts) or streaming or min(given) <= 0):
        raise InputError("`fraction` is set above 0 for all of `datasets` or for none, and not for streams")
    loaded = [
        load_preferences(**{key: value for key, value in part.items() if key != "fraction"}, streaming=streaming)
        for part in parts
    ]
    if given:
        total = min(len(dataset) / fraction for dataset, fraction in zip(loaded, fractions, strict=True))
        loaded = [
            dataset.select(range(round(fraction * total))) for dataset, fraction in zip(loaded, fractions, strict=True)
        ]
    known = [
        dataset.select_columns([column for column in COLUMNS if column in dataset.column_names])
        if dataset.column_names
        else dataset
        for dataset in loaded
    ]
    with refusals():
        return datasets.concatenate_datasets(known)
