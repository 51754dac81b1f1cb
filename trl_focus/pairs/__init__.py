# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Preference pairs out of prompts with references: see docs/pairs.md."""

from .corruption import CORRUPTIONS, corrupt
from .judging import Judgement, weighted_judge
from .makers import NoPairError, best_and_worst, target_and_corrupted, target_and_sample
from .writing import Made, make_pairs


__all__ = [
    "CORRUPTIONS",
    "Judgement",
    "Made",
    "NoPairError",
    "best_and_worst",
    "corrupt",
    "make_pairs",
    "target_and_corrupted",
    "target_and_sample",
    "weighted_judge",
]
