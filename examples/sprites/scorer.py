# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
An exact scorer of sprite scenes: a matched filter over all subjects at all places on the token grid.

In a window `x` on a ground `b`, a subject of colours `c` and coverage `a` explains the squared error
`|x - b|^2 - |x - (b + a (c - b))|^2 = 2 (x - b) a (c - b) - |a (c - b)|^2` that the bare ground leaves. What explains most
is what stands there.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from .world import (
    GROUNDS,
    QUADRANT,
    ROOM,
    SCENE,
    SLOTS,
    SPRITE,
    SUBJECTS,
    TOKEN,
    Scene,
    draw_scene,
    generator,
    paste,
    render,
    shape_coverage,
    sprite,
)


STEPS = range(0, ROOM + 1, TOKEN)
PLACES = [  # quadrant by quadrant
    (row + down, column + right)
    for row in (0, QUADRANT)
    for column in (0, QUADRANT)
    for down in STEPS
    for right in STEPS
]
PRESENT = 0.4  # share of a subject's own contrast that has to be explained for it to be there


@cache
def templates() -> tuple[np.ndarray, np.ndarray]:
    """Colours times coverage, and coverage, of all subjects: `(SUBJECTS, pixels, 3)` and `(SUBJECTS, pixels, 1)`."""
    colours, coverages = zip(*map(sprite, SUBJECTS), strict=True)
    coverage = np.stack(coverages).reshape(len(SUBJECTS), -1, 1).astype(np.float32)
    return np.stack(colours).reshape(len(SUBJECTS), -1, 3).astype(np.float32) * coverage, coverage


@cache
def contrasts(ground: int) -> tuple[np.ndarray, np.ndarray]:
    """Every subject's difference from a ground, of shape `(SUBJECTS, pixels * 3)`, and its squared norm."""
    shown, coverage = templates()
    contrast = (shown - coverage * np.array([*GROUNDS.values()][ground], np.float32)).reshape(len(SUBJECTS), -1)
    return contrast, np.square(contrast).sum(axis=1)


def look(image: np.ndarray) -> tuple[int, list[tuple[int, tuple[int, int], float]]]:
    """
    What a picture shows.

    Args:
        image (`np.ndarray` of shape `(SCENE, SCENE, 3)`):
            Picture in [0, 255].

    Returns:
        `tuple`: the ground whose colour is nearest to the picture's median, and for each slot's quadrant the subject that
        explains it best, as an index into `SUBJECTS`, its place (top, left), and the share of its contrast that it explains:
        1 for a perfect picture, 0 or less for none.
    """
    image = image.astype(np.float32)
    median = np.median(image.reshape(-1, 3), axis=0)
    ground = int(np.square(np.array([*GROUNDS.values()]) - median).sum(axis=1).argmin())
    rest = image - np.array([*GROUNDS.values()][ground], np.float32)
    contrast, norms = contrasts(ground)
    windows = np.stack([rest[top : top + SPRITE, left : left + SPRITE].ravel() for top, left in PLACES])
    gains = (2 * windows @ contrast.T - norms).reshape(len(SLOTS), -1)  # of each place and subject of a quadrant
    seen = []
    for quadrant, best in enumerate(gains.argmax(axis=1)):
        place, subject = divmod(int(best), len(SUBJECTS))
        place += quadrant * len(PLACES) // len(SLOTS)
        seen.append((subject, PLACES[place], float(gains[quadrant, best] / norms[subject])))
    return ground, seen


def score(image: np.ndarray, asked: Scene) -> dict[str, float]:
    """
    Scores a picture against the scene that was asked for.

    Args:
        image (`np.ndarray` of shape `(SCENE, SCENE, 3)`):
            Picture in [0, 255].
        asked (`Scene`):
            What the prompt and the references ask for.

    Returns:
        `dict[str, float]`: shares of the subjects in [0, 1], and errors in units of the full range of brightness.

        - identity: in its quadrant with the right shape, colour and pattern.
        - leakage: there, but with the value of an attribute that is another reference's.
        - present, position: there; there and in a corner of its quadrant, as in all scenes of the world.
        - shape, colour, pattern: there with the right one.
        - extra: share of the empty quadrants in which something stands.
        - background_error: root mean square difference from the asked ground, outside of all that stands there.
        - residual: root mean square difference from the best explanation of the picture by subjects on a ground.
    """
    ground, seen = look(image)
    totals = dict.fromkeys(("identity", "leakage", "present", "position", "shape", "colour", "pattern"), 0.0)
    for subject, slot in zip(asked.subjects, asked.slots, strict=True):
        index, place, share = seen[slot]
        if share < PRESENT:
            continue
        found = SUBJECTS[index]
        right = [ours == theirs for ours, theirs in zip(subject, found, strict=True)]
        others = [other for other in asked.subjects if other != subject]
        leaked = any(not right[k] and any(found[k] == other[k] for other in others) for k in range(len(subject)))
        in_corner = all((side % QUADRANT) in (0, ROOM) for side in place)
        values = all(right), leaked, True, in_corner, *right
        for name, value in zip(totals, values, strict=True):
            totals[name] += value / len(asked.subjects)

    empty = [slot for slot in range(len(SLOTS)) if slot not in asked.slots]
    extra = sum(seen[slot][2] >= PRESENT for slot in empty) / max(len(empty), 1)

    explanation = np.empty((SCENE, SCENE, 3))
    explanation[:] = [*GROUNDS.values()][ground]
    outside = np.ones((SCENE, SCENE), dtype=bool)
    for index, place, share in seen:
        if share >= PRESENT:
            paste(explanation, SUBJECTS[index], place)
            window = outside[place[0] : place[0] + SPRITE, place[1] : place[1] + SPRITE]
            window &= shape_coverage(SUBJECTS[index].shape) == 0
    away = image[outside] / 255 - np.array([*GROUNDS.values()][asked.ground]) / 255
    return totals | {
        "extra": extra,
        "background_error": float(np.sqrt(np.square(away).mean())),
        "residual": float(np.sqrt(np.square((image - explanation) / 255).mean())),
    }


def score_all(images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Scores of many pictures: for each name an array with one value a picture."""
    rows = [score(np.asarray(image), scene) for image, scene in zip(images, scenes, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def own_accuracy(n_scenes: int = 256) -> dict[str, dict[str, float]]:
    """What the scorer says of renders that show just what was asked for, clean, noisy and blurred."""
    rngs = [generator("validation", 20, i) for i in range(n_scenes)]
    scenes = [draw_scene(rng, "validation", 1 + i % 4) for i, rng in enumerate(rngs)]
    images = [render(scene) for scene in scenes]
    noisy = {
        f"noise {std}": [
            np.clip(image + rng.normal(0, std, image.shape), 0, 255) for image, rng in zip(images, rngs, strict=True)
        ]
        for std in (20, 40, 80)
    }
    soft = {f"blur {sigma}": [blurred(image, sigma) for image in images] for sigma in (1, 2, 3)}
    return {
        name: {key: float(values.mean()) for key, values in score_all(pictures, scenes).items()}
        for name, pictures in {"clean": images, **noisy, **soft}.items()
    }


if __name__ == "__main__":
    for name, means in own_accuracy().items():
        print(f"{name:10}", *(f"{key} {value:.3f}" for key, value in means.items()))
