# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Rows that pairs are made of: those of the preference schema without `rejected`, and, where the pipeline is to draw both
images, without `chosen`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
from datasets import Features, Value

from ..data.layout import LayoutRule
from ..data.rows import check_row, inspect_row, reference_subject_indices, subject_count, subject_names
from ..data.schema import COLUMNS, FEATURES
from ..data.validation import TIE
from ..evaluation.benchmark import Item, Subject


# How each pair came about, beside the schema's columns, which training reads alone
PROVENANCE = Features(
    {
        "source_row": Value("int64"),
        "kind": Value("string"),
        "margin": Value("float32"),
        "provenance": Value("string"),
    }
)
PAIR_FEATURES = Features({**FEATURES, **PROVENANCE})

_BLANK = PIL.Image.new("RGB", (64, 64))


def check_source(row: Mapping[str, Any]):
    """
    Checks a row that a pair is to be made of.

    Raises:
        ValueError: If it has problems; names all of them.
    """
    known = {name: row.get(name) for name in COLUMNS if name not in ("rejected", "rejected_masks")}
    known["chosen"] = _BLANK if known["chosen"] is None else known["chosen"]
    if problems := check_row({**known, "rejected": _BLANK}):
        raise ValueError("; ".join(problems))


def check_pair(row: Mapping[str, Any]):
    """
    Checks a finished pair: training and `trl-focus validate` take it as it is.

    Raises:
        ValueError: If it has problems; names all of them.
    """
    report = inspect_row(row)
    if problems := [*report.problems, *([TIE] if report.tie else [])]:
        raise ValueError("; ".join(problems))
    # At any resolution: what it refuses are aspect ratios
    LayoutRule(resolution=1024, multiple=16).target(report.chosen_size, report.rejected_size)


def item_of(row: Mapping[str, Any], number: int) -> Item:
    """
    What a row asks for. Subjects without names are numbered from "1" on, for people to tell them apart.

    Args:
        row (`Mapping`):
            A row that was checked.
        number (`int`):
            Its number in the data set.

    Raises:
        ValueError: If it has no references: nobody could say whether a subject is who it should be.
    """
    references = tuple(row.get("references") or ())
    if not references:
        raise ValueError("it has no `references`, so there is no subject to compare with")
    masks = tuple(row.get("reference_masks") or [None] * len(references))
    shown = reference_subject_indices(row)
    count = max(subject_count({"chosen_masks": None, "rejected_masks": None, **row}), max(shown) + 1)
    names = subject_names(row) or [str(i + 1) for i in range(count)]
    subjects = []
    for s, name in enumerate(names):
        own = [i for i, subject in enumerate(shown) if subject == s]
        if not own:
            raise ValueError(f"its subject {name!r} has no reference")
        subjects.append(Subject(name, tuple(references[i] for i in own), tuple(masks[i] for i in own)))
    return Item(number, row["prompt"], references, tuple(subjects))


def mask_image(mask_HW: np.ndarray | None) -> PIL.Image.Image | None:
    """A mask in [0, 1] as an image; `None` for an absent subject."""
    return None if mask_HW is None else PIL.Image.fromarray((255 * mask_HW).round().astype(np.uint8))
