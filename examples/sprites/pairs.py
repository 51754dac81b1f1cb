# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The pairs that runs train on: made or drawn once, and kept on disk."""

import tempfile
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import datasets
from filelock import FileLock

from .data import RENDERED, best_and_worst, dataset_of, make_pairs, sampled_row
from .pipeline import DEVICE, load_base
from .sampling import draw
from .world import draw_scene, generator, references_of


CACHE = Path("outputs/sprites/pairs")
N_PAIRS = 640
N_ON_POLICY = 512  # they have to be drawn
N_SAMPLES = 4  # of a prompt, best and worst of which make an on-policy pair


def folder_of(regime: str, seed: int, relevant_only: bool, split: str, n_pairs: int) -> Path:
    return CACHE / f"{regime}-{split}-{n_pairs}-{seed}{'-relevant' if relevant_only else ''}"


def seed_of_pairs(regime: str, seed: int) -> int:
    return 0 if regime == "on-policy" else seed


@lru_cache(maxsize=16)
def pairs_of(regime: str, seed: int, relevant_only: bool, split: str = "train", n_pairs: int = N_PAIRS):
    """
    The pairs of a regime, kept on disk. `mixed` has all the others in equal shares. Those of `on-policy` are the same for
    every seed: they are samples, and drawing them takes longer than training on them.
    """
    seed = seed_of_pairs(regime, seed)
    folder = folder_of(regime, seed, relevant_only, split, n_pairs)
    with one_process(f"{regime}-{split}-{n_pairs}-{seed}"):
        if folder.exists():
            return datasets.load_from_disk(folder)
        if regime == "mixed":
            parts = [*RENDERED, "on-policy"]
            found = [pairs_of(part, seed, relevant_only, split, n_pairs) for part in parts]
            rows = datasets.concatenate_datasets([part.select(range(n_pairs // len(parts))) for part in found])
        elif regime == "on-policy":
            both = on_policy_pairs(min(n_pairs, N_ON_POLICY), split, seed)
            keep(both[not relevant_only], folder_of(regime, seed, not relevant_only, split, n_pairs))
            rows = both[relevant_only]
        else:
            rows = make_pairs(regime, n_pairs, split, seed, relevant_only)
        keep(rows, folder)
    return rows


def keep(rows: datasets.Dataset, folder: Path):
    """Writes rows so that the folder is there once it is whole."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        rows.save_to_disk(Path(made) / "rows")
        if not folder.exists():  # those of `on-policy` come in twos
            (Path(made) / "rows").rename(folder)


def one_process(work: str) -> FileLock:
    """Within it no other process does the same work, which then finds what this one made."""
    CACHE.mkdir(parents=True, exist_ok=True)
    return FileLock(CACHE / f"{work}.lock")


def on_policy_pairs(n_pairs: int, split: str, seed: int, chunk: int = 64) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    Best against worst of `N_SAMPLES` samples of the base; prompts whose samples hardly differ are left out. Once with
    masks of all subjects, once with those of the relevant ones alone.
    """
    base, both, asked = load_base().to(DEVICE), ([], []), 0
    while len(both[0]) < n_pairs:
        rngs = [generator(split, 11, seed, i) for i in range(asked, asked + chunk)]
        asked += chunk
        scenes = [draw_scene(rng, split, 2) for rng in rngs]
        references = [references_of(scene.subjects, rng) for scene, rng in zip(scenes, rngs, strict=True)]
        samples = [
            draw(base, scenes, references, [int(rng.integers(2**31)) for rng in rngs]) for _ in range(N_SAMPLES)
        ]
        for i, (scene, rng) in enumerate(zip(scenes, rngs, strict=True)):
            if shown := best_and_worst(scene, [images[i] for images in samples]):
                for relevant_only, rows in enumerate(both):
                    rows.append(sampled_row(scene, shown, bool(relevant_only), deepcopy(rng)))
    return tuple(dataset_of(rows[:n_pairs]) for rows in both)
