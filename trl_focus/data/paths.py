# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
A dataset may name files: those that its rows stand in, and images in place of holding them. Those of a dataset that somebody else
wrote must lie in its own folder: otherwise it could have any picture of this machine trained on and uploaded.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Image, List
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from ..errors import InputError
from .images import HUB_FILES, container_of


def places_of(name: str, local: bool) -> list[str]:
    """Where the files of a dataset may lie: its folder, or what the Hub's cache and its address are."""
    if local:
        folder = Path(os.path.realpath(name))
        # The Hub's cache keeps what a snapshot links to beside the snapshots
        return [str(folder), *([str(folder.parents[1] / "blobs")] if folder.parent.name == "snapshots" else [])]
    cache = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="dataset"))
    unpacked = datasets.config.DOWNLOADED_DATASETS_PATH
    return [os.path.realpath(cache), os.path.realpath(unpacked), f"{HUB_FILES}{name}"]


def _lies_in(path: str, places: Sequence[str]) -> bool:
    try:
        container = container_of(path)
    except ValueError:
        return False
    if "://" in container:
        return any(container.startswith((f"{place}/", f"{place}@")) for place in places) and ".." not in container
    found = os.path.realpath(container)
    return any(found.startswith(f"{place}{os.sep}") for place in places if "://" not in place)


def check_files(files: Iterable[str], places: Sequence[str]):
    """
    Refuses files of rows outside of these places: the card of a dataset may name any under `data_files`.

    Raises:
        InputError: If there is one; names it.
    """
    for file in files:
        if not _lies_in(file, places):
            raise InputError(
                f"the dataset's files include {file!r}, which is not in the dataset's own folder, and is not read: put it there, "
                "or load it as a dataset of its own"
            )


def saved_files(folder: Path) -> Iterator[str]:
    """
    What `datasets.load_from_disk` reads of a folder.

    Raises:
        InputError: If it can't be told.
    """
    try:
        parts = [folder] if (folder / "state.json").exists() else []
        if (folder / "dataset_dict.json").exists():
            parts += [folder / name for name in json.loads((folder / "dataset_dict.json").read_text())["splits"]]
        for part in parts:
            yield str(part / "state.json")
            for entry in json.loads((part / "state.json").read_text())["_data_files"]:
                yield str(part / entry["filename"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is not as `save_to_disk` writes it, and can't be read: {type(error).__name__}: {error}"
        ) from error


def _refusal(row: int, column: str, path: str) -> InputError:
    return InputError(
        f"row {row}: `{column}` names the file {path!r}, which is not in the dataset's own folder, and is not read. Images "
        "belong into the dataset: `dataset.push_to_hub` and `dataset.save_to_disk` store them"
    )


def _is_image(feature: Any) -> bool:
    return isinstance(feature, Image) or (
        isinstance(feature, List | datasets.LargeList) and _is_image(feature.feature)
    )


def _stored_paths(values: pa.Array) -> Iterator[tuple[int, str]]:
    """Row and path of each image that is stored as no more than a path."""
    rows = pa.array(range(len(values)))
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        rows = rows.take(pc.list_parent_indices(values))
        values = pc.list_flatten(values)
    paths = pc.struct_field(values, "path")
    alone = pc.and_(pc.is_valid(paths), pc.is_null(pc.struct_field(values, "bytes")))
    yield from zip(rows.filter(alone).to_pylist(), paths.filter(alone).to_pylist(), strict=True)


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value.get("bytes") is None and isinstance(value.get("path"), str):
        yield value["path"]
    elif isinstance(value, list):
        for entry in value:
            yield from _paths(entry)


def _keep(row: Mapping[str, Any], number: int, places: Sequence[str]) -> bool:
    for column, value in row.items():
        for path in _paths(value):
            if not _lies_in(path, places):
                raise _refusal(number, column, path)
    return True


def confined(
    dataset: datasets.Dataset | datasets.IterableDataset, places: Sequence[str]
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Refuses image files outside of these places: of a dataset here, of a stream when the row is read. Opens none.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Any dataset.
        places (`Sequence[str]`):
            Resolved folders, and addresses on the Hub.

    Raises:
        InputError: If an image is a path to elsewhere; names the row, the column and the path.
    """
    if isinstance(dataset, datasets.IterableDataset):
        encoded = dataset if dataset.features is None else dataset.decode(False)
        return encoded.filter(partial(_keep, places=places), with_indices=True)
    columns = [column for column, feature in dataset.features.items() if _is_image(feature)]
    first = 0
    for batch in dataset.select_columns(columns).with_format("arrow").iter(1000) if columns else ():
        for column in columns:
            for row, path in _stored_paths(batch[column].combine_chunks()):
                if not _lies_in(path, places):
                    raise _refusal(first + row, column, path)
        first += len(batch)
    return dataset
