# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Files of runs that may be stopped and go on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError


def write_whole(path: Path, text: str):
    """Writes a file that is there as a whole, or not at all."""
    unfinished = path.with_suffix(f".{os.getpid()}.part")  # of this process: others may write the same
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def keep_settings(output_dir: str | Path, settings: Mapping[str, Any]):
    """
    Writes the settings of a run to `<output_dir>/settings.json`, so that it does not go on with others.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
        settings (`Mapping[str, Any]`):
            What JSON can hold.

    Raises:
        InputError: If the folder holds a run of other settings; says which differ. One that left nothing else is none.
    """
    path = Path(output_dir) / "settings.json"
    if path.parent.is_file():
        raise InputError(f"{path.parent} is a file: name a folder")
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            before = {}
        differing = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if not differing:
            return
        if any(other != path for other in path.parent.iterdir()):
            raise InputError(
                f"{path.parent} holds a run of other settings: {', '.join(differing)}. Give another `output_dir`, or remove that "
                "one"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings, indent=1, ensure_ascii=False))
