# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What a dataset holds, and all that is wrong with it, for people to read."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from statistics import median
from typing import Any, NamedTuple

import datasets

from .layout import LayoutRule
from .rows import inspect_row
from .schema import COLUMNS, check_columns, listed
from .validation import TIE, as_record, row_reports


class Inspection(NamedTuple):
    """
    Attributes:
        problems (`list[tuple[int, str]]`):
            Row and sentence of each reason for which training would refuse the dataset.
        warnings (`list[str]`):
            What training takes, and is seldom meant.
        summary (`dict[str, str]`):
            What the dataset holds.
    """

    problems: list[tuple[int, str]]
    warnings: list[str]
    summary: dict[str, str]


def inspect_dataset(
    dataset: datasets.Dataset | datasets.IterableDataset,
    rows: int | None = None,
    ties: str = "error",
    crop: str = "none",
    resolution: int = 1024,
    num_proc: int | None = None,
) -> Inspection:
    """
    Reads a dataset as training does before its first step, and collects everything in place of refusing the first.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Rows of the preference schema.
        rows (`int`, *optional*):
            How many rows to read, from the first. Defaults to all.
        ties (`str`, *optional*, defaults to `"error"`), crop (`str`, *optional*, defaults to `"none"`):
            As in [`DiffusionDPOConfig`].
        resolution (`int`, *optional*, defaults to `1024`):
            At which sizes are counted.
        num_proc (`int`, *optional*):
            Number of processes that check rows, where it is no stream.

    Raises:
        ValueError, TypeError: If columns are missing or of another type: then no row can be read.
    """
    check_columns(dataset)
    names = dataset.column_names or []
    if isinstance(dataset, datasets.IterableDataset):
        stream = dataset if dataset.features is None else dataset.decode(False)
        stream = stream if rows is None else stream.take(rows)
        records = [as_record(inspect_row(row), number) for number, row in enumerate(stream)]
    else:
        dataset = dataset if rows is None else dataset.select(range(min(rows, len(dataset))))
        records = row_reports(dataset, num_proc).to_list()
    rule = LayoutRule(resolution, 16, stretch=crop == "none")
    problems, sizes = [], Counter()
    for record in records:
        problems += [(record["row"], problem) for problem in record["problems"]]
        if record["tie"] and ties == "error":
            problems.append((record["row"], TIE))
        if record["width"] and record["rejected_width"]:
            try:
                size = rule.target(
                    (record["width"], record["height"]), (record["rejected_width"], record["rejected_height"])
                )
                sizes[size, tuple(map(tuple, record["reference_sizes"]))] += 1
            except ValueError as error:
                problems.append((record["row"], str(error)))
    kept = [record for record in records if not record["tie"]]
    if records and not kept and ties == "drop":
        problems.append((0, "every row's `chosen` and `rejected` are the same picture: no row is left to train on"))
    if not records:
        problems.append((0, "there is no such row: the dataset is empty, and there is nothing to train on"))
    return Inspection(
        problems, [*_name_warnings(names), *_row_warnings(records)], _summary(records, sizes, resolution)
    )


def _name_warnings(names: Sequence[str]) -> list[str]:
    warnings = []
    for name in names:
        near = [] if name in COLUMNS else get_close_matches(name, COLUMNS, n=1, cutoff=0.8)
        if near and near[0] not in names:
            warnings.append(f"the column `{name}` is not read: is it meant to be `{near[0]}`?")
    return warnings


def _row_warnings(records: Sequence[dict[str, Any]]) -> list[str]:
    seen = defaultdict(list)
    for record in records:
        if record["digests"]:
            seen[tuple(record["digests"])].append(record["row"])
    warnings = [f"rows {listed(rows)} are the same pair" for rows in seen.values() if len(rows) > 1]
    for (inputs, chosen, rejected), rows in seen.items():
        if chosen < rejected and (others := seen.get((inputs, rejected, chosen))):
            warnings.append(f"rows {listed(rows)} prefer one of two images, and rows {listed(others)} the other")
    masked = [record["row"] for record in records if record["has_masks"]]
    if masked and len(masked) < len(records):
        bare = [record["row"] for record in records if not record["has_masks"]]
        warnings.append(
            f"{len(bare)} of {len(records)} rows have no masks of both images, which `focus_prior='masks'` needs: "
            f"rows {listed(bare)}"
        )
    return warnings


def span(values: Iterable[float], form: str = "{:g}") -> str:
    """The least, the largest and the median of some values, in a format."""
    values = sorted(values)
    low, high = form.format(values[0]), form.format(values[-1])
    return low if low == high else f"{low} to {high}, median {form.format(median(values))}"


def _summary(records: Sequence[dict[str, Any]], sizes: Counter, resolution: int) -> dict[str, str]:
    summary = {"rows": str(len(records))}
    if pictures := [(record["width"], record["height"]) for record in records if record["width"]]:
        summary["width of chosen"] = span(width for width, _ in pictures)
        summary["height of chosen"] = span(height for _, height in pictures)
    if sizes:
        (height, width), _ = sizes.most_common(1)[0][0]
        summary[f"layouts at {resolution}"] = f"{len(sizes)}, most often {width}x{height}"
    if records:
        counts = Counter(len(record["reference_sizes"]) for record in records)
        summary["references"] = ", ".join(f"{count} ({rows} rows)" for count, rows in sorted(counts.items()))
    summary["rows with masks"] = str(sum(record["has_masks"] for record in records))
    if shares := [share for record in records for share in record["mask_shares"]]:
        present = [share for share in shares if share > 0]
        summary["masks"] = f"{len(shares)}, {len(shares) - len(present)} of an absent subject"
        if present:
            summary["area of a subject"] = span(present, "{:.1%}")
    digests = Counter(tuple(record["digests"]) for record in records if record["digests"])
    summary["ties"] = str(sum(record["tie"] for record in records))
    summary["exact duplicates"] = str(sum(digests.values()) - len(digests))
    return summary
