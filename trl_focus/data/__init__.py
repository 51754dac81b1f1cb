# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from .converters import from_folder, from_pick_a_pic
from .images import decode_image, decode_mask, mask_to_array
from .loading import load_preferences
from .rows import RowReport, check_row, inspect_row, is_tie, reference_subject_indices, subject_count
from .schema import COLUMNS, FEATURES, OPTIONAL_COLUMNS, REQUIRED_COLUMNS, check_columns
from .validation import check_streamed_row, validate_dataset


__all__ = [
    "COLUMNS",
    "FEATURES",
    "OPTIONAL_COLUMNS",
    "REQUIRED_COLUMNS",
    "RowReport",
    "check_columns",
    "check_row",
    "check_streamed_row",
    "decode_image",
    "decode_mask",
    "from_folder",
    "from_pick_a_pic",
    "inspect_row",
    "is_tie",
    "load_preferences",
    "mask_to_array",
    "reference_subject_indices",
    "subject_count",
    "validate_dataset",
]
