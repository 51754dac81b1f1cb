# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What many scores say together."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from .benchmark import Item
from .measuring import Line
from .statistics import Estimate, bootstrap, paired_difference


Rows = dict[int, float]  # row of the benchmark -> mean of its images

# In this order in reports; others follow
NAMES = {
    "instances/identity": "identity of each subject, cut out",
    "instances/collapse/0.4": "subjects lost, cut out (below 0.4)",
    "instances/collapse/0.5": "subjects lost, cut out (below 0.5)",
    "instances/collapse/0.6": "subjects lost, cut out (below 0.6)",
    "instances/leakage": "leakage between subjects (margin)",
    "instances/leaked": "subjects like another's reference",
    "instances/found": "subjects found",
    "identity": "identity, of the whole image",
    "collapse/0.4": "Subject Collapse Rate at 0.4",
    "collapse/0.5": "Subject Collapse Rate at 0.5",
    "collapse/0.6": "Subject Collapse Rate at 0.6",
    "dino/photographs": "DINO, all photographs",
    "dino/reference": "DINO, the reference alone",
    "clip_i/photographs": "CLIP-I, all photographs",
    "clip_i/reference": "CLIP-I, the reference alone",
    "clip_t": "CLIP-T",
}


class Summary(NamedTuple):
    """
    Attributes:
        scores (`list[str]`):
            Names of the scores, in the order in which they are told.
        rows (`dict[str, dict[str, dict[int, float]]]`):
            Of each system and score, the mean of each row's images.
        means (`dict[str, dict[str, Estimate]]`):
            Of each system and score.
        differences (`dict[str, dict[str, Estimate]]`):
            Of each system but the first, and of each score, its difference from the first on the rows of both.
        by_subjects (`dict[int, dict[str, dict[str, Estimate]]]`):
            The means of items with so many subjects; empty where all have as many.
    """

    scores: list[str]
    rows: dict[str, dict[str, Rows]]
    means: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    by_subjects: dict[int, dict[str, dict[str, Estimate]]]


def row_means(lines: Sequence[Line]) -> dict[str, dict[str, Rows]]:
    """Of each system and score, the mean of each row's images."""
    values = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for line in lines:
        for name, value in line.scores.items():
            values[line.system][name][line.row].append(value)
    return {
        system: {name: {row: fmean(found) for row, found in rows.items()} for name, rows in scores.items()}
        for system, scores in values.items()
    }


def summarize(lines: Sequence[Line], items: Sequence[Item]) -> Summary:
    """
    Means over the rows of a benchmark, with intervals, and differences between systems.

    Args:
        lines (`Sequence[Line]`):
            From [`measure`]. The system of the first is the one that others are compared with.
        items (`Sequence[Item]`):
            Items of the benchmark.
    """
    rows = row_means(lines)
    groups = {item.row: item.group for item in items}
    names = dict.fromkeys(name for scores in rows.values() for name in scores)
    ordered = [name for name in NAMES if name in names] + [name for name in names if name not in NAMES]

    def means(kept: set[int]) -> dict[str, dict[str, Estimate]]:
        found = {}
        for system, scores in rows.items():
            found[system] = {}
            for name in filter(scores.__contains__, ordered):
                if known := {row: value for row, value in scores[name].items() if row in kept}:
                    found[system][name] = bootstrap([*known.values()], [groups[row] for row in known])
        return found

    first, *others = rows
    differences = {
        other: {
            name: difference
            for name in rows[other]
            if (difference := paired_difference(rows[first].get(name, {}), rows[other][name], groups))
        }
        for other in others
    }
    by_count = defaultdict(set)
    for item in items:
        by_count[len(item.subjects)].add(item.row)
    by_subjects = {count: means(by_count[count]) for count in sorted(by_count)} if len(by_count) > 1 else {}
    return Summary(ordered, rows, means({*groups}), differences, by_subjects)
