# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The pictures in the folder of a run: callbacks write them, and the model card looks for them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image


SAMPLES = "samples"
FOCUS_MAPS = "focus_maps"
METADATA = "metadata.jsonl"


def write_samples(
    output_dir: Path,
    step: int,
    images: Sequence[PIL.Image.Image],
    prompts: Sequence[str],
    seeds: Sequence[int],
    references: Sequence[Sequence[PIL.Image.Image]],
    settings: dict[str, Any],
):
    """
    Writes samples, in place of earlier ones, to `<output_dir>/samples`: `1.png`, `1-reference-1.png`, ... and a row for each
    in `metadata.jsonl`, with which it can be drawn again.

    Args:
        output_dir (`Path`), step (`int`):
            Folder and step of the run.
        images, prompts, seeds, references:
            The samples, and what each was drawn from.
        settings (`dict`):
            What else the pipeline was called with; what JSON can't hold is left out.
    """
    folder = output_dir / SAMPLES
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in settings.items() if _is_json(value)}
    rows = []
    for number, (image, prompt, seed, shown) in enumerate(zip(images, prompts, seeds, references, strict=True), 1):
        names = [f"{number}-reference-{i}.png" for i in range(1, len(shown) + 1)]
        for name, picture in zip([f"{number}.png", *names], [image, *shown], strict=True):
            picture.save(folder / name)
        rows.append(
            {
                "file_name": f"{number}.png",
                "prompt": prompt,
                "references": names,
                "step": step,
                "seed": seed,
                "settings": settings,
            }
        )
    (folder / METADATA).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_samples(output_dir: Path) -> list[dict[str, Any]]:
    """The rows of the samples that are there. A line that was not written to its end is passed over."""
    folder, rows = output_dir / SAMPLES, []
    if (folder / METADATA).is_file():
        for line in (folder / METADATA).read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if all((folder / name).is_file() for name in (row["file_name"], *row["references"])):
                rows.append(row)
    return rows


def last_picture(output_dir: Path, name: str) -> str | None:
    """The path in `output_dir` of the last picture of those that [`show`] wrote under this name."""
    pictures = sorted((output_dir / name).glob("step-*.png"))
    return f"{name}/{pictures[-1].name}" if pictures else None


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
