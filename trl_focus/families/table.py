# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The table of families as text. Imports none of them."""

import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any


TABLE = Path(__file__).with_name("table.json")  # what `python -m trl_focus.families --json` prints
WIDTH = 30  # of a column


def _cells(row: dict[str, Any]) -> dict[str, str]:
    least, most = row["references"]
    counts = "none" if most == 0 else str(least) if least == most else f"{least} to {'N' if most is None else most}"
    takes = most != 0 or row["reference_positions"]
    targets = row["lora_target_modules"]
    return {
        "family": row["family"],
        "pipelines": ", ".join(row["pipelines"]),
        "references": counts + (", or N with reference_positions" if row["reference_positions"] else ""),
        "predicts": row["prediction_type"],
        "default LoRA targets": targets if isinstance(targets, str) else ", ".join(targets),
        "block tapped": f"half-way through {', '.join(row['blocks'])}" if takes and row["blocks"] else "none",
    }


def families_text(families: Sequence[dict[str, Any]]) -> str:
    """Families, as entries of `TABLE`, in aligned columns."""
    rows = [_cells(row) for row in families]
    table = [[*rows[0]], *([*row.values()] for row in rows)]
    wrapped = [[textwrap.wrap(cell, WIDTH) for cell in row] for row in table]
    widths = [max(len(line) for cell in column for line in cell) for column in zip(*wrapped, strict=True)]
    lines = []
    for row in wrapped:
        for parts in zip_longest(*row, fillvalue=""):
            cells = (part.ljust(width) for part, width in zip(parts, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
        lines.append("")
    return "\n".join(lines[:-1])
