# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What a pipeline draws, measured: see docs/evaluation.md."""

from .benchmark import Benchmark, Item, Subject, read_benchmark
from .drawing import draw_images
from .embedders import Embedder
from .instances import Instance, asked_boxes
from .measuring import Line, measure
from .report import write_report
from .scorers import Scorer, published_scorer, subject_scorer
from .statistics import Estimate, bootstrap, paired_difference
from .summary import Summary, summarize


__all__ = [
    "Benchmark",
    "Embedder",
    "Estimate",
    "Instance",
    "Item",
    "Line",
    "Scorer",
    "Subject",
    "Summary",
    "asked_boxes",
    "bootstrap",
    "draw_images",
    "measure",
    "paired_difference",
    "published_scorer",
    "read_benchmark",
    "subject_scorer",
    "summarize",
    "write_report",
]
