# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""`python -m trl_focus.families`: the table of families, from the registry."""

import argparse
import json
import sys
import textwrap
from itertools import zip_longest
from typing import Any

from . import FAMILIES, Family, family_class


WIDTH = 30  # of a column


def families() -> list[dict[str, Any]]:
    """
    What each family of the registry is, from its class alone: no pipeline is made.

    Returns:
        `list[dict]`, a family each:
            - `family` (`str`), `pipelines` (`list[str]`): names of its class, and of the pipelines' classes
            - `references` (`list`): fewest and most of a prompt; `None` is no limit
            - `reference_positions` (`bool`): whether references can be placed in a model whose pipeline takes none
            - `prediction_type` (`str`): `"flow"`, or `"epsilon or v"`
            - `lora_target_modules` (`list[str]` or `str`): default LoRA targets; a string is a regular expression
            - `blocks` (`list[str]`): lists of blocks, half-way through which features are compared
    """
    pipelines: dict[type[Family], list[str]] = {}
    for name in sorted(FAMILIES):
        pipelines.setdefault(family_class([name]), []).append(name)
    return [
        {
            "family": family.__name__,
            "pipelines": names,
            "references": list(family.reference_counts),
            "reference_positions": family.place_references is not Family.place_references,
            "prediction_type": family.prediction_type,
            "lora_target_modules": family.lora_target_modules,
            "blocks": list(family.block_lists),
        }
        for family, names in pipelines.items()
    ]


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


def families_text(as_json: bool = False) -> str:
    """The families as aligned columns, or as JSON."""
    if as_json:
        return json.dumps(families(), indent=2)
    rows = [_cells(row) for row in families()]
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


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser("python -m trl_focus.families", description="The families of models that train.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    sys.stdout.write(families_text(parser.parse_args(arguments).json) + "\n")


if __name__ == "__main__":
    main()
