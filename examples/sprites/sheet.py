# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What the numbers look like: test scenes in which the base leaks, drawn by the base and by the methods that were tuned at
their chosen points, from the same noise.

    python -m examples.sprites.sheet [REGIME]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from examples.pictures import caption, save, sheet, show

from .compare import train
from .pipeline import DEVICE, load_base
from .runs import Run, operating_points
from .sampling import draw, drawn_scores, scenes_of
from .world import Scene, prompt_of, render


PATH = Path("docs/images/sprites_samples.png")
N_SCENES, N_SHOWN = 64, 6
METHODS = ("dpo", "focus", "focus-held")


def leaking(scores: dict[str, list], most: int) -> np.ndarray:
    """The first scenes in which a subject has an attribute of another."""
    return np.flatnonzero(np.array(scores["leakage"]) > 0)[:most]


def draw_sheet(
    scenes: Sequence[Scene],
    references: Sequence[Sequence[PIL.Image.Image]],
    drawn: dict[str, np.ndarray],
    path: Path,
):
    """A row a scene: its references, what each system drew, and what was asked for."""
    figure, grid = sheet(len(scenes), ("reference 1", "reference 2", *drawn, "asked for"))
    for i, axes in enumerate(grid):
        caption(axes[0], prompt_of(scenes[i]))
        pictures = [*(images[i] for images in drawn.values()), render(scenes[i])]
        for ax, image in zip(axes, [*references[i], *map(PIL.Image.fromarray, pictures)], strict=True):
            show(ax, image)
    save(figure, path)


def main(regime: str = "nuisance-strong"):
    base = load_base().to(DEVICE)
    shown = leaking(drawn_scores(base, "test", N_SCENES), N_SHOWN)
    scenes, references, seeds = ([part[i] for i in shown] for part in scenes_of("test", N_SCENES, 2))
    drawn = {"base": draw(base, scenes, references, seeds)}
    for method in METHODS:
        trainer = train(Run(regime, method, **operating_points()[method][regime]))
        with trainer.sampling():
            drawn[method] = draw(trainer.pipeline, scenes, references, seeds)
    draw_sheet(scenes, references, drawn, PATH)


if __name__ == "__main__":
    main(*sys.argv[1:])
