# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Collection
from functools import partial
from typing import Any

import datasets
from transformers.utils import logging

from ..errors import InputError
from .batches import PreferenceRows, PreferenceStream
from .detail import detail_columns, with_detail
from .layout import Layout, LayoutRule
from .schema import COLUMNS, check_columns
from .validation import check_streamed_row, validate_dataset


logger = logging.get_logger(__name__)

PreferenceDataset = datasets.Dataset | datasets.IterableDataset

NO_MASKS = (
    "has no `chosen_masks` and `rejected_masks`, which the focus map needs: add them, or set `focus_prior` to 'similarity' "
    "(subjects are then found by their references) or 'everywhere', or `focus_map` to 'uniform'"
)
NO_REFERENCES = "has no `references`, by which the focus map is to find its subjects (`focus_prior='similarity'`)"


def prepare_preferences(
    dataset: PreferenceDataset,
    rule: LayoutRule,
    ties: str = "error",
    num_proc: int | None = None,
    needs: Collection[str] = (),
) -> PreferenceRows | PreferenceStream:
    """
    Checks a preference dataset against the schema and a model, and finds each row's layout. A stream is checked row by
    row as it is read.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Pairs in the preference schema.
        rule ([`LayoutRule`]):
            Target size, and how the model sizes references.
        ties (`str`, *optional*, defaults to `"error"`):
            `"error"` refuses pairs whose two images are the same, `"drop"` leaves them out.
        num_proc (`int`, *optional*):
            Processes that check the rows of a map-style dataset.
        needs (`Collection[str]`, *optional*):
            What a focus map needs: `"masks"` or `"references"` in every row, `"similarity"` to the references that some row
            has, and `"detail"`, which is measured here (of a stream as it is read).

    Raises:
        TypeError: If it is no dataset, or a column is of the wrong type.
        ValueError: If rows can't be trained on; the message names them, with the column and the way out.
    """
    if isinstance(dataset, datasets.IterableDataset):
        return _prepare_stream(dataset.with_format(None), rule, ties, needs)
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(
            f"The dataset must be a `datasets.Dataset` or a `datasets.IterableDataset`, got {type(dataset).__name__}"
            + (": pick a split, as in `dataset['train']`." if isinstance(dataset, dict) else ".")
        )
    if dataset.format["type"] == "custom":
        raise ValueError(
            "The dataset has a transform (`set_transform` or `with_transform`), which the checks would not see. Apply it with "
            "`dataset.map`, or take it off with `dataset.with_format(None)`."
        )
    dataset, reports = validate_dataset(dataset.with_format(None), ties, num_proc)
    layouts, problems = [], []
    for report in reports:
        try:
            _check_needs(needs, report["has_masks"], report["reference_sizes"])
            layouts.append(
                rule(
                    (report["width"], report["height"]),
                    (report["rejected_width"], report["rejected_height"]),
                    [tuple(size) for size in report["reference_sizes"]],
                )
            )
        except ValueError as error:
            problems.append(f"row {report['row']}: {error}")
    if problems:
        more = f"\n... and {len(problems) - 10} more rows" if len(problems) > 10 else ""
        raise ValueError("\n".join(["Nothing was trained:", *problems[:10]]) + more)
    if "similarity" in needs and not any(layout.reference_sizes for layout in layouts):
        logger.warning(
            "No row has `references`: the focus map has nothing to compare images with, and takes what it makes of that "
            "(matches, structure, leakage) as absent."
        )
    if len({*layouts}) > len(layouts) / 2 > 8:
        logger.warning(
            f"{len(layouts)} rows have {len({*layouts})} layouts (target size, number and sizes of references), and a batch holds "
            "rows of one. Most batches will hold a single row: bring references to a few common sizes."
        )
    dataset = dataset.select_columns([name for name in COLUMNS if name in dataset.column_names])
    details = detail_columns(dataset, rule, num_proc) if "detail" in needs else None
    return PreferenceRows(dataset, layouts, list(reports["row"]), details, list(reports["content"]))


def _check_needs(needs: Collection[str], has_masks: bool, references: Collection):
    if "masks" in needs and not has_masks:
        raise ValueError(NO_MASKS)
    if "references" in needs and not references:
        raise ValueError(NO_REFERENCES)


def _inspect(row: dict[str, Any], number: int, rule: LayoutRule, ties: str, needs: Collection[str]) -> Layout | None:
    report = check_streamed_row(row, number)
    if report.tie:
        if ties == "drop":
            return None
        raise InputError(
            f"row {number}: `chosen` and `rejected` are the same picture, which teaches nothing. Set `ties='drop'` "
            "to leave such rows out."
        )
    try:
        _check_needs(needs, report.has_masks, report.reference_sizes)
        return rule(report.chosen_size, report.rejected_size, report.reference_sizes)
    except ValueError as error:
        raise InputError(f"row {number}: {error}") from error


def _prepare_stream(
    dataset: datasets.IterableDataset, rule: LayoutRule, ties: str, needs: Collection[str]
) -> PreferenceStream:
    check_columns(dataset)
    if getattr(dataset, "_distributed", None) is not None:
        raise ValueError(
            "This stream was split by `split_dataset_by_node`, and processes share its batches out by themselves: rows "
            "would be lost. Give the whole stream to every process."
        )
    if dataset.features is not None:
        # Images stay encoded until their batch is collated
        dataset = dataset.select_columns([name for name in COLUMNS if name in dataset.features]).decode(False)
    return PreferenceStream(
        dataset,
        partial(_inspect, rule=rule, ties=ties, needs=needs),
        details=partial(with_detail, rule=rule) if "detail" in needs else None,
    )
