# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Preference pairs of the world of sprites, in named regimes: what chosen and rejected differ in, besides what matters.

What matters in rendered pairs is always the same: a subject of the rejected image has an attribute of another. In those of
samples it is whatever the judge of identity saw, often that a subject is missing. All pairs of a regime come from a seed and
a split; masks of rendered images are exact.
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
import PIL.Image
from datasets import Dataset, Features

from trl_focus.data import FEATURES

from .scorer import PRESENT, look, score
from .world import (
    COLOURS,
    PATTERNS,
    REFERENCE,
    REFERENCE_PLACE,
    SCENE,
    SHAPES,
    SUBJECTS,
    Scene,
    Split,
    Subject,
    draw_scene,
    generator,
    leaks,
    place_mask,
    prompt_of,
    references_of,
    render,
    scene_masks,
)


WEAK, STRONG = 0.03, 0.08  # standard deviation of a ground's texture, of a brightness of 1
COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "references",
    "reference_masks",
    "subjects",
    "chosen_masks",
    "rejected_masks",
)


class Pair(NamedTuple):
    """
    A preference pair before it is rendered.

    Attributes:
        asked (`Scene`):
            What prompt and references ask for.
        chosen, rejected (`Scene`):
            What is shown.
        relevant (`tuple[int, ...]`):
            Indices of the subjects in which chosen and rejected differ as the label says.
    """

    asked: Scene
    chosen: Scene
    rejected: Scene
    relevant: tuple[int, ...]


def _textured(scene: Scene, strength: float, rng: np.random.Generator) -> Scene:
    return scene._replace(texture=int(rng.integers(2**31)), strength=strength)


def _another(asked: Scene, kept: int, rng: np.random.Generator) -> Scene:
    """The scene with any subjects in place of those other than `kept`, and all of them in any corners."""
    seen = [subject for subject in SUBJECTS if not subject.held_out]
    subjects = tuple(
        subject if i == kept else seen[rng.integers(len(seen))] for i, subject in enumerate(asked.subjects)
    )
    return asked._replace(subjects=subjects, corners=tuple(rng.integers(4, size=len(subjects)).tolist()))


def _minimal(asked: Scene, leaked: Scene, which: int, rng: np.random.Generator) -> tuple[Scene, Scene]:
    return asked, leaked


def _nuisance_weak(asked: Scene, leaked: Scene, which: int, rng: np.random.Generator) -> tuple[Scene, Scene]:
    return _textured(asked, WEAK, rng), _textured(leaked, WEAK, rng)


def _nuisance_strong(asked: Scene, leaked: Scene, which: int, rng: np.random.Generator) -> tuple[Scene, Scene]:
    return tuple(_textured(_another(scene, which, rng), STRONG, rng) for scene in (asked, leaked))


def _confounded_chosen(asked: Scene, leaked: Scene, which: int, rng: np.random.Generator) -> tuple[Scene, Scene]:
    return _textured(asked, STRONG, rng), leaked


def _confounded_rejected(asked: Scene, leaked: Scene, which: int, rng: np.random.Generator) -> tuple[Scene, Scene]:
    return asked, _textured(leaked, STRONG, rng)


# Name -> how chosen and rejected come from the scene that was asked for and one in which subject `which` is wrong.
RENDERED: dict[str, Callable[..., tuple[Scene, Scene]]] = {
    "minimal": _minimal,
    "nuisance-weak": _nuisance_weak,
    "nuisance-strong": _nuisance_strong,
    "confounded-chosen": _confounded_chosen,
    "confounded-rejected": _confounded_rejected,
}
REGIMES = (*RENDERED, "on-policy", "mixed")


def rendered_pair(regime: str, rng: np.random.Generator, split: Split, n_subjects: int = 2) -> Pair:
    """Draws a pair of a regime whose images are both rendered."""
    while True:
        asked = draw_scene(rng, split, n_subjects)
        which = int(rng.integers(n_subjects))
        if found := leaks(asked, which):
            leaked = found[rng.integers(len(found))]
            return Pair(asked, *RENDERED[regime](asked, leaked, which, rng), (which,))


def subject_name(subject: Subject) -> str:
    return f"{[*COLOURS][subject.colour]} {PATTERNS[subject.pattern]} {SHAPES[subject.shape]}"


def row_of(
    asked: Scene,
    images: Sequence[np.ndarray],
    masks: Sequence[Sequence[np.ndarray | None]],
    rng: np.random.Generator,
) -> dict:
    """A row of the preference schema: `images` and `masks` of the chosen and of the rejected picture."""

    def pictures(arrays):
        return [None if array is None else PIL.Image.fromarray(array) for array in arrays]

    return {
        "prompt": prompt_of(asked),
        **dict(zip(("chosen", "rejected"), pictures(images), strict=True)),
        "references": references_of(asked.subjects, rng),
        "reference_masks": pictures(
            place_mask(REFERENCE, REFERENCE_PLACE, subject.shape) for subject in asked.subjects
        ),
        "subjects": [subject_name(subject) for subject in asked.subjects],
        **dict(zip(("chosen_masks", "rejected_masks"), map(pictures, masks), strict=True)),
    }


def only(masks: Sequence[np.ndarray], kept: Sequence[int]) -> list[np.ndarray | None]:
    """Masks of some subjects; the others have none."""
    return [mask if i in kept else None for i, mask in enumerate(masks)]


def rendered_row(pair: Pair, relevant_only: bool, rng: np.random.Generator) -> dict:
    shown = pair.chosen, pair.rejected
    kept = pair.relevant if relevant_only else range(len(pair.asked.subjects))
    return row_of(pair.asked, [*map(render, shown)], [only(scene_masks(scene), kept) for scene in shown], rng)


def dataset_of(rows: list[dict]) -> Dataset:
    return Dataset.from_list([*map(_stored, rows)], features=Features({name: FEATURES[name] for name in COLUMNS}))


def _stored(value):
    """A row with its pictures as files; those of `datasets` take three times as long, for files of textures a fifth smaller."""
    if isinstance(value, dict):
        return {name: _stored(part) for name, part in value.items()}
    if isinstance(value, list):
        return [*map(_stored, value)]
    if not isinstance(value, PIL.Image.Image):
        return value
    file = BytesIO()
    value.save(file, "PNG", compress_level=1)
    return {"bytes": file.getvalue(), "path": None}


def make_pairs(
    regime: str, n_pairs: int, split: Split = "train", seed: int = 0, relevant_only: bool = False
) -> Dataset:
    """
    Makes preference pairs of two subjects.

    Args:
        regime (`str`):
            One of `RENDERED`.
        n_pairs (`int`):
            Number of rows.
        split (`str`, *optional*, defaults to `"train"`):
            Split whose scenes are asked for.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the pairs.
        relevant_only (`bool`, *optional*, defaults to `False`):
            Only masks of the subject in which the two differ as the label says: what an oracle would know.

    Returns:
        `datasets.Dataset`: Rows of the preference schema.
    """
    rows = []
    for i in range(n_pairs):
        rng = generator(split, 10, [*RENDERED].index(regime), seed, i)
        rows.append(rendered_row(rendered_pair(regime, rng, split), relevant_only, rng))
    return dataset_of(rows)


def seen_masks(image: np.ndarray, asked: Scene) -> list[np.ndarray | None]:
    """Masks of what stands in the quadrants that were asked for; none where nothing does."""
    _, seen = look(image)
    return [
        place_mask(SCENE, seen[slot][1], SUBJECTS[seen[slot][0]].shape) if seen[slot][2] >= PRESENT else None
        for slot in asked.slots
    ]


def quality(image: np.ndarray, asked: Scene) -> float:
    """What a judge of identity would say of a picture, in [0, 1]."""
    values = score(image, asked)
    return 0.5 * values["identity"] + (values["shape"] + values["colour"] + values["pattern"]) / 6


def best_and_worst(
    asked: Scene, images: Sequence[np.ndarray], margin: float = 0.2
) -> tuple[np.ndarray, np.ndarray] | None:
    """The best and the worst of samples of one prompt; `None` if they hardly differ."""
    qualities = [quality(image, asked) for image in images]
    order = np.argsort(qualities, kind="stable")
    if qualities[order[-1]] - qualities[order[0]] < margin:
        return None
    return images[order[-1]], images[order[0]]


def sampled_row(
    asked: Scene, shown: tuple[np.ndarray, np.ndarray], relevant_only: bool, rng: np.random.Generator
) -> dict:
    """A row of samples, with masks of what is seen on them."""
    kept = range(len(asked.subjects))
    if relevant_only:
        found = [[look(image)[1][slot] for slot in asked.slots] for image in shown]
        kept = [i for i, (one, other) in enumerate(zip(*found, strict=True)) if one[0] != other[0]]
    return row_of(asked, shown, [only(seen_masks(image, asked), kept) for image in shown], rng)
