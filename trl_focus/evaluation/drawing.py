# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Images of a benchmark: drawn by a pipeline, or found where another tool has written them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from tqdm.auto import tqdm

from ..sampling import sample_with_references
from .benchmark import Item, open_image


def image_path(folder: Path, row: int, number: int) -> Path:
    """Where the image of a row with this number is: UNO's inference names its images so, too."""
    return folder / f"{row}_{number}.png"


def draw_image(pipeline, item: Item, seed: int, **settings: Any) -> PIL.Image.Image:
    """
    Draws what an item asks for.

    Args:
        pipeline (`DiffusionPipeline`):
            Loaded pipeline, with a LoRA or without.
        item (`Item`):
            Prompt and references.
        seed (`int`):
            Seed of the noise, which is drawn on the CPU: it is the same on every device.
        settings:
            What else [`sample_with_references`] is called with.
    """
    references = [open_image(source) for source in item.references]
    generator = torch.Generator().manual_seed(seed)
    return sample_with_references(pipeline, item.prompt, references, generator=generator, **settings).images[0]


def draw_images(
    pipeline, items: Sequence[Item], folder: str | Path, n_images: int = 1, seed: int = 0, **settings: Any
) -> list[tuple[int, str]]:
    """
    Draws the images of a benchmark that are not there yet. Image j of every row is drawn from the seed plus j, whatever
    else is drawn: so images of two pipelines are from the same noise.

    Args:
        pipeline (`DiffusionPipeline`):
            Loaded pipeline, with a LoRA or without.
        items (`Sequence[Item]`):
            Items of the benchmark.
        folder (`str` or `Path`):
            Where `<row>_<number>.png` are written.
        n_images (`int`, *optional*, defaults to `1`):
            Images of each item.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the first.
        settings:
            What else [`sample_with_references`] is called with.

    Returns:
        `list[tuple[int, str]]`: Rows that the pipeline refused, and what it said.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(item, number, image_path(folder, item.row, number)) for item in items for number in range(n_images)]
    problems = {}
    for item, number, path in tqdm([each for each in wanted if not each[2].exists()], desc=folder.name, disable=None):
        if item.row in problems:
            continue
        try:
            image = draw_image(pipeline, item, seed + number, **settings)
        except (TypeError, ValueError) as error:  # as of settings of a wrong type
            problems[item.row] = f"{type(pipeline).__name__} refuses it: {error}"
            continue
        unfinished = path.with_suffix(".part")
        image.save(unfinished, format="PNG")
        os.replace(unfinished, path)  # a run that is stopped leaves no half of an image
    return [*problems.items()]
