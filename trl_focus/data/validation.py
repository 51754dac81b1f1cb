# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Checks of whole datasets."""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

import datasets
from datasets import Features, List, Value
from datasets.fingerprint import Hasher

from .. import __version__
from ..errors import InputError
from .rows import RowReport, inspect_row
from .schema import COLUMNS, SHOWN, check_columns, listed


logger = logging.getLogger(__name__)

TIE = "`chosen` and `rejected` are the same picture: a tie teaches nothing; pass ties='drop' to leave such rows out"

_REPORT_FEATURES = Features(
    {
        "row": Value("int64"),
        "problems": List(Value("string")),
        "tie": Value("bool"),
        "width": Value("int32"),
        "height": Value("int32"),
        "rejected_width": Value("int32"),
        "rejected_height": Value("int32"),
        "reference_sizes": List(List(Value("int32"))),
        "has_masks": Value("bool"),
        "mask_shares": List(Value("float32")),
        "digests": List(Value("string")),
        "content": Value("string"),
    }
)


def _problem_error(problems: list[tuple[int, str]]) -> ValueError:
    lines = [f"row {row}: {problem}" for row, problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"... and {len(problems) - SHOWN} more")
    first = f"{len(problems)} problem{'s' * (len(problems) > 1)} in the preference pairs (rows count from 0):"
    return ValueError("\n".join([first, *lines, "Nothing was trained. Correct these rows or leave them out."]))


def check_streamed_row(row: Mapping[str, Any], number: int) -> RowReport:
    """
    Inspects a row of a stream.

    Args:
        row (`Mapping`):
            A row of the preference schema.
        number (`int`):
            The row's place in the stream, counted from 0.

    Returns:
        [`RowReport`]: The report of a row without problems; it may still be a tie.

    Raises:
        InputError: If the row has problems; names the row and the columns.
    """
    report = inspect_row(row)
    if report.problems:
        raise InputError("\n".join(f"row {number} of the stream: {problem}" for problem in report.problems))
    return report


def as_record(report: RowReport, row: int) -> dict[str, Any]:
    """A row's report as a row of the dataset of reports."""
    width, height = report.chosen_size or (None, None)
    rejected_width, rejected_height = report.rejected_size or (None, None)
    return {
        "row": row,
        "problems": report.problems,
        "tie": report.tie,
        "width": width,
        "height": height,
        "rejected_width": rejected_width,
        "rejected_height": rejected_height,
        "reference_sizes": report.reference_sizes,
        "has_masks": report.has_masks,
        "mask_shares": report.mask_shares,
        "digests": report.digests,
        "content": report.content,
    }


def _report(table, row: int, version: str, files: str) -> dict[str, Any]:
    return as_record(inspect_row(table.to_pylist()[0]), row)


def row_reports(dataset: datasets.Dataset, num_proc: int | None = None) -> datasets.Dataset:
    """
    Inspects every row of a dataset whose columns were checked. Refuses none.

    Args:
        dataset (`datasets.Dataset`):
            Rows of the preference schema.
        num_proc (`int`, *optional*):
            Number of processes that check rows.

    Returns:
        `datasets.Dataset`: One [`RowReport`] a row, as columns, with the row's number.
    """
    # In Arrow's format, images are not decoded (one that can't be is a row's problem and no crash inside `map`), and unlike
    # a cast to `Image(decode=False)`, which `datasets` carries out for lists by writing all images again, it is free.
    return (
        dataset.select_columns([column for column in COLUMNS if column in dataset.features])
        .with_format("arrow")
        .map(
            _report,
            with_indices=True,
            features=_REPORT_FEATURES,
            num_proc=num_proc,
            # Parts of the fingerprint: another release may check other things, and files may have changed
            fn_kwargs={"version": __version__, "files": _state_of_files(dataset)},
            desc="Checking preference pairs",
        )
        .with_format(None)
    )


def _state_of_files(dataset: datasets.Dataset) -> str:
    """A hash of sizes and times of the images that are not in the table itself."""
    paths: set[str] = set()
    for name, feature in dataset.features.items():
        if isinstance(getattr(feature, "feature", feature), datasets.Image):
            for chunk in dataset.data.column(name).chunks:
                images = chunk.flatten() if hasattr(chunk, "value_lengths") else chunk
                paths.update(images.field("path").filter(images.field("bytes").is_null()).drop_null().to_pylist())
    states = []
    for path in sorted(paths):
        with suppress(OSError):  # in an archive, or on the Hub
            stat = os.stat(path)
            states.append((path, stat.st_size, stat.st_mtime_ns))
    return Hasher.hash(states)


def validate_dataset(
    dataset: datasets.Dataset, ties: Literal["error", "drop"] = "error", num_proc: int | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    Checks every row of a dataset before anything is trained on it. A dataset that passed is not checked again: `datasets`
    caches the reports where it caches the dataset.

    Args:
        dataset (`datasets.Dataset`):
            Rows of the preference schema.
        ties (`str`, *optional*, defaults to `"error"`):
            What pairs of one and the same picture are: `"error"` makes them problems, `"drop"` leaves them out.
        num_proc (`int`, *optional*):
            Number of processes that check rows.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: The dataset with the rows kept, and their reports in the same order,
        with the columns `row` (index in the given dataset), `width`, `height` (of chosen, in pixels), `rejected_width`,
        `rejected_height`, `reference_sizes` (list of [width, height]), `has_masks`, `mask_shares` and `digests`.

    Raises:
        ValueError: If a required column is missing, rows have problems (the first of them are named), no row is left,
            or `ties` is another value.
        TypeError: If a column has a type of another kind, or if this is not a `datasets.Dataset`.
    """
    if ties not in ("error", "drop"):
        raise ValueError(f"`ties` is {ties!r}: pass 'error' or 'drop'")
    check_columns(dataset)
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError("a stream can't be checked as a whole: its rows are checked one by one, as they come")
    if len(dataset) == 0:
        raise ValueError("the dataset has no rows: there is nothing to train on")

    reports = row_reports(dataset, num_proc)
    tied = [row for row, tie in enumerate(reports["tie"]) if tie]
    problems = [(row, problem) for row, sentences in enumerate(reports["problems"]) for problem in sentences]
    if ties == "error":
        problems = sorted(problems + [(row, TIE) for row in tied], key=lambda problem: problem[0])
    if problems:
        raise _problem_error(problems)

    reports = reports.remove_columns(["problems", "tie"])
    if not tied:
        return dataset, reports
    if len(tied) == len(dataset):
        raise ValueError("every row's `chosen` and `rejected` are the same picture: no row is left to train on")
    logger.warning(
        "Dropped %d of %d rows whose `chosen` and `rejected` are the same picture: rows %s",
        len(tied),
        len(dataset),
        listed(tied),
    )
    kept = sorted(set(range(len(dataset))) - set(tied))
    return dataset.select(kept), reports.select(kept)
