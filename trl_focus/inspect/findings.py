# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What is remarkable about each row, to filter by."""

from collections import defaultdict
from typing import NamedTuple

import datasets

from ..data.schema import check_columns, listed
from ..data.validation import row_reports


REFUSED = "refused by training"


class Findings(NamedTuple):
    """
    Attributes:
        kinds (`dict[str, list[int]]`):
            Rows by what is remarkable about them; kinds that no row is of are left out.
        reasons (`list[list[str]]`):
            For each row, sentences that say what it is.
    """

    kinds: dict[str, list[int]]
    reasons: list[list[str]]


def find(dataset: datasets.Dataset, num_proc: int | None = None) -> Findings:
    """
    Reads every row as training does before its first step, and as `trl-focus validate` tells it, but row by row.

    Args:
        dataset (`datasets.Dataset`):
            Rows of the preference schema; the column `problems` of `trl-focus masks` is read as well.
        num_proc (`int`, *optional*):
            Processes that read rows.

    Raises:
        ValueError, TypeError: If columns are missing or of another type.
    """
    check_columns(dataset)
    reports = row_reports(dataset, num_proc)
    notes: dict[str, dict[int, list[str]]] = defaultdict(dict)
    doubts = dataset["problems"] if "problems" in dataset.column_names else [None] * len(dataset)
    same, opposite = defaultdict(list), defaultdict(list)
    for report, doubt in zip(reports, doubts, strict=True):
        row = report["row"]
        if report["problems"]:
            notes[REFUSED][row] = report["problems"]
        if doubt:
            notes["masks not sure"][row] = list(doubt)
        if report["tie"]:
            notes["tie"][row] = ["`chosen` and `rejected` are the same picture"]
        if not report["problems"] and not report["has_masks"]:
            notes["no masks"][row] = ["there are no masks of both images"]
        if report["has_masks"] and 0 in report["mask_shares"]:
            notes["a subject is absent"][row] = ["a subject has no mask, or an empty one, in one of the images"]
        if report["digests"]:
            inputs, chosen, rejected = report["digests"]
            same[inputs, chosen, rejected].append(row)
            opposite[inputs, rejected, chosen].append(row)
    for key, rows in same.items():
        if len(rows) > 1:
            notes["the same pair twice"] |= {row: [f"rows {listed(rows)} are the same pair"] for row in rows}
        if key in opposite and key[1] != key[2]:
            others = opposite[key]
            notes["contradicted"] |= {row: [f"rows {listed(others)} prefer the other image"] for row in rows}
    kinds = {kind: sorted(rows) for kind, rows in notes.items()}
    reasons = [[sentence for rows in notes.values() for sentence in rows.get(row, [])] for row in range(len(dataset))]
    return Findings(kinds, reasons)
