# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
The preference schema: one row is one pair of images for one prompt, with optional references, subjects and masks.

| column | holds |
|---|---|
| `prompt` | the caption both images were made for |
| `chosen`, `rejected` | the preferred image and the other one |
| `references` | list of reference images, of any length |
| `subjects` | list of names; they give the order of the masks (where absent, the references do) |
| `reference_subjects` | for each reference its subject, as an index or as a name; one to one where absent |
| `chosen_masks`, `rejected_masks` | for each subject its mask in that image; black or None: the subject is absent |
| `reference_masks` | for each reference the mask of its subject |

All but the first three are optional: a column may be missing, and None in place of a list says that the row has none.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import datasets
from datasets import Features, Image, List, Value


REQUIRED_COLUMNS = ("prompt", "chosen", "rejected")
OPTIONAL_COLUMNS = (
    "references",
    "reference_masks",
    "chosen_masks",
    "rejected_masks",
    "subjects",
    "reference_subjects",
)
COLUMNS = REQUIRED_COLUMNS + OPTIONAL_COLUMNS

# To be given to `Dataset.from_list` and the like where types can't be inferred, as with None inside a list of images.
FEATURES = Features(
    {
        "prompt": Value("string"),
        "chosen": Image(),
        "rejected": Image(),
        "references": List(Image()),
        "reference_masks": List(Image()),
        "chosen_masks": List(Image()),
        "rejected_masks": List(Image()),
        "subjects": List(Value("string")),
        "reference_subjects": List(Value("int64")),
    }
)

SHOWN = 10  # how many of the rows, names or files in question a message names

_KINDS = {Image.dtype: "images", "string": "strings", "int64": "indices or names of subjects"}


def listed(values: Iterable) -> str:
    """The first of these values, for a message, and how many there are besides."""
    values = list(values)
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(repr, values[:SHOWN])) + more


def _fits(feature: Any, wanted: Any) -> bool:
    """Whether a column of this feature can be read as the wanted one. Null is the type of nothing but None."""
    if feature == Value("null"):
        return True
    if isinstance(wanted, List):
        return isinstance(feature, List | datasets.LargeList) and _fits(feature.feature, wanted.feature)
    if isinstance(wanted, Image):
        return isinstance(feature, Image)
    # An index of a subject may be its name.
    kinds = ("string", "large_string", "int", "uint") if wanted == Value("int64") else ("string", "large_string")
    return isinstance(feature, Value) and feature.dtype.startswith(kinds)


def require_dataset(dataset: Any) -> None:
    """
    Raises:
        TypeError: If this is not one split of a `datasets` dataset.
    """
    if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise TypeError(f"this holds several splits: pass one of them, e.g. dataset[{next(iter(dataset), 'train')!r}]")
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        raise TypeError(
            f"expected a `datasets.Dataset` or `datasets.IterableDataset`, got {type(dataset).__name__}: see "
            "`datasets.Dataset.from_list` and `datasets.IterableDataset.from_generator`"
        )


def check_columns(
    dataset: datasets.Dataset | datasets.IterableDataset, required: Sequence[str] = REQUIRED_COLUMNS
) -> None:
    """
    Checks the names and types of a dataset's columns. What a stream without features has is not known before its rows.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Rows of the preference schema.
        required (`Sequence[str]`, *optional*):
            Columns that must be there. Defaults to those that training needs.

    Raises:
        ValueError: If a required column is missing.
        TypeError: If a column has a type of another kind, or if this is not a dataset.
    """
    require_dataset(dataset)
    if dataset.features is None:
        return
    missing = [column for column in required if column not in dataset.features]
    if missing:
        raise ValueError(
            f"the dataset lacks the columns {listed(missing)}; it has {listed(dataset.features)}. Columns of another "
            f'name are renamed with `dataset.rename_column("name", "{missing[0]}")`'
        )
    for column, wanted in FEATURES.items():
        if column in dataset.features and not _fits(dataset.features[column], wanted):
            element = wanted.feature if isinstance(wanted, List) else wanted
            kind = _KINDS[element.dtype]
            code = "datasets.Image()" if isinstance(element, Image) else f'datasets.Value("{element.dtype}")'
            if isinstance(wanted, List):
                kind, code = f"lists of {kind}", f"datasets.List({code})"
            raise TypeError(
                f"`{column}` has the type {dataset.features[column]} and should hold {kind}. Cast it with "
                f'`dataset.cast_column("{column}", {code})`'
            )
