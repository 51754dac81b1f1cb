# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
`python -m trl_focus.families`: the table of families, from the registry. `trl-focus families` prints what `table.json` keeps of it,
without the imports: `python -m trl_focus.families --json > trl_focus/families/table.json`.
"""

import argparse
import json
import sys
from typing import Any

from . import FAMILIES, family_class
from .base import Family
from .table import families_text


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


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser("python -m trl_focus.families", description="The families of models that train.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    as_json = parser.parse_args(arguments).json
    sys.stdout.write((json.dumps(families(), indent=2) if as_json else families_text(families())) + "\n")


if __name__ == "__main__":
    main()
