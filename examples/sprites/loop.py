# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
The loop around training, without a network: the small model that ships here draws, its best images are paired with its worst,
it is tuned on these pairs, and the LoRA is evaluated against the base.

Nothing but the references says what is good: subjects are found by their difference from the ground, and compared by the
latents of the VAE that ships here. Only at the end the exact scorer of this world says whether that was right.

    python -m examples.sprites.loop
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Features
from rich import print
from rich.table import Table
from scipy.stats import spearmanr

from trl_focus import FocusDPOConfig, FocusDPOTrainer
from trl_focus.data import FEATURES, load_preferences
from trl_focus.evaluation import Instance, Item, Subject, measure, subject_scorer, write_report
from trl_focus.evaluation.instances import mask_box
from trl_focus.evaluation.metrics import unit
from trl_focus.pairs import best_and_worst, make_pairs, weighted_judge

from .data import quality, subject_name
from .pipeline import ENCODE_PROMPT_KWARGS, load_base
from .sampling import draw
from .scorer import score
from .world import (
    QUADRANT,
    REFERENCE,
    REFERENCE_PLACE,
    SCENE,
    SPRITE,
    Scene,
    Split,
    draw_scene,
    generator,
    place_mask,
    prompt_of,
    references_of,
)


OUTPUT = Path("outputs/loop")
N_ROWS, N_SAMPLES, N_SCENES = 96, 4, 64
DIFFERENT = 20  # of 255, from the ground
SMALLEST = 0.1  # of the area in which a sprite stands
WEIGHTS = {"instances/identity": 1.0, "instances/leakage": -0.5}


def asked(split: Split, n: int) -> tuple[list[Scene], list[list[PIL.Image.Image]]]:
    """Scenes of two subjects with their references."""
    rngs = [generator(split, 50, i) for i in range(n)]
    scenes = [draw_scene(rng, split, 2) for rng in rngs]
    return scenes, [references_of(scene.subjects, rng) for scene, rng in zip(scenes, rngs, strict=True)]


def reference_masks(scene: Scene) -> list[PIL.Image.Image]:
    return [PIL.Image.fromarray(place_mask(REFERENCE, REFERENCE_PLACE, subject.shape)) for subject in scene.subjects]


def rows_of(scenes: Sequence[Scene], references: Sequence[Sequence[PIL.Image.Image]]) -> Dataset:
    """What a user has before there are pairs: prompts and references, with masks."""
    rows = [
        {
            "prompt": prompt_of(scene),
            "references": images,
            "reference_masks": reference_masks(scene),
            "subjects": [*map(subject_name, scene.subjects)],
        }
        for scene, images in zip(scenes, references, strict=True)
    ]
    return Dataset.from_list(rows, features=Features({name: FEATURES[name] for name in rows[0]}))


def items_of(scenes: Sequence[Scene], references: Sequence[Sequence[PIL.Image.Image]]) -> list[Item]:
    items = []
    for row, (scene, images) in enumerate(zip(scenes, references, strict=True)):
        parts = zip(scene.subjects, images, reference_masks(scene), strict=True)
        subjects = tuple(Subject(subject_name(subject), (image,), (mask,)) for subject, image, mask in parts)
        items.append(Item(row, prompt_of(scene), tuple(images), subjects))
    return items


def find_in_quadrants(scenes: Sequence[Scene]) -> Callable[[PIL.Image.Image, Item], list[Instance]]:
    """
    Finds each subject in the quadrant that the prompt names, as what differs from the ground there. This knows the layout
    that was asked for, and not what the subjects look like.
    """

    def find(image: PIL.Image.Image, item: Item) -> list[Instance]:
        pixels = np.asarray(image, dtype=np.float32)
        differs_HW = np.abs(pixels - np.median(pixels, axis=(0, 1))).max(axis=-1) > DIFFERENT
        instances = []
        for subject, slot in enumerate(scenes[item.row].slots):
            top, left = slot // 2 * QUADRANT, slot % 2 * QUADRANT
            quadrant = slice(top, top + QUADRANT), slice(left, left + QUADRANT)
            mask_HW = np.zeros(differs_HW.shape, np.float32)
            mask_HW[quadrant] = differs_HW[quadrant]
            if mask_HW.sum() > SMALLEST * SPRITE**2:
                instances.append(Instance(mask_box(mask_HW), mask_HW, subject))
        return instances

    return find


def latent_embedder(vae) -> Callable[[Sequence[PIL.Image.Image]], np.ndarray]:
    """Unit vectors of images: their latents, minus those of plain grey."""

    @torch.no_grad()
    def encode(images: Sequence[PIL.Image.Image]) -> torch.Tensor:
        pixels = [np.asarray(image.resize((REFERENCE, REFERENCE)), dtype=np.float32) for image in images]
        x_BCHW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1
        return vae.encode(x_BCHW).latent_dist.mean.flatten(1)

    ground = encode([PIL.Image.new("RGB", (REFERENCE, REFERENCE), (128, 128, 128))])
    return lambda images: unit((encode(images) - ground).numpy())


def exact_scorer(scenes: Sequence[Scene]) -> Callable[..., dict[str, float]]:
    """What this world knows: whether each subject is the one that was asked for."""

    def judge(image: PIL.Image.Image, item: Item, instances: Sequence[Instance] | None) -> dict[str, float]:
        pixels, scene = np.asarray(image), scenes[item.row]
        exact = score(pixels, scene)
        return {
            "exact/identity": exact["identity"],
            "exact/leaked": exact["leakage"],
            "exact/quality": quality(pixels, scene),
        }

    return judge


def sampled_pairs(pipeline, output: Path) -> Dataset:
    """Pairs of the model's own images. They are drawn many at once, before they are judged."""
    scenes, references = asked("train", N_ROWS)
    repeated = [i for i in range(N_ROWS) for _ in range(N_SAMPLES)]
    drawn = draw(pipeline, [scenes[i] for i in repeated], [references[i] for i in repeated], [*range(len(repeated))])
    judge = weighted_judge([subject_scorer(latent_embedder(pipeline.vae))], WEIGHTS, find_in_quadrants(scenes))
    make = best_and_worst(lambda item, seed: PIL.Image.fromarray(drawn[seed]), judge, N_SAMPLES, margin=0.1)
    made = make_pairs(
        rows_of(scenes, references), "best-worst", make, output, seeds_per_row=N_SAMPLES, about={"weights": WEIGHTS}
    )
    print(f"{made.pairs} pairs of {N_ROWS} rows; {len(made.without)} with too small a margin")
    pairs = load_preferences(str(output / "pairs"))
    right = [
        quality(np.asarray(pair["chosen"]), scenes[pair["source_row"]])
        - quality(np.asarray(pair["rejected"]), scenes[pair["source_row"]])
        for pair in pairs
    ]
    print(
        f"the exact scorer agrees with {np.mean(np.array(right) > 0):.0%} of them, and disagrees with {np.mean(np.array(right) < 0):.0%}"
    )
    return pairs


def evaluated(systems: dict[str, Callable[[], np.ndarray]], scenes, references, vae, output: Path) -> dict[str, dict]:
    """Images, scores and report of systems; for each score and system the values of all images."""
    folders = {name: output / "images" / name for name in systems}
    for name, drawn in systems.items():
        folders[name].mkdir(parents=True, exist_ok=True)
        for row, image in enumerate(drawn()):
            PIL.Image.fromarray(image).save(folders[name] / f"{row}_0.png")
    items = items_of(scenes, references)
    scorers = [subject_scorer(latent_embedder(vae)), exact_scorer(scenes)]
    lines, problems = measure(folders, items, scorers, output, find=find_in_quadrants(scenes))
    write_report(output, lines, items, folders, problems, {"model of identity": "latents of the VAE of the sprites"})
    return {
        shown: {name: np.array([line.scores[shown] for line in lines if line.system == name]) for name in systems}
        for shown in ("instances/identity", "instances/found", "exact/identity", "exact/leaked", "exact/quality")
    }


def main():
    shutil.rmtree(OUTPUT, ignore_errors=True)  # of another loop: pairs that are there would not be made again
    pipeline = load_base()
    pairs = sampled_pairs(pipeline, OUTPUT)
    scenes, references = asked("test", N_SCENES)
    seeds = [*range(N_SCENES)]
    base = draw(pipeline, scenes, references, seeds)

    args = FocusDPOConfig(
        output_dir=str(OUTPUT / "lora"),
        resolution=SCENE,
        encode_prompt_kwargs=ENCODE_PROMPT_KWARGS,
        beta=100.0,
        per_device_train_batch_size=16,
        learning_rate=5e-4,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=10,
        max_steps=50,
        logging_steps=10,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
    )
    trainer = FocusDPOTrainer(pipeline, args=args, train_dataset=pairs)
    trainer.train()
    trainer.save_model()

    loaded = load_base()
    loaded.load_lora_weights(args.output_dir)
    systems = {"base": lambda: base, "lora": lambda: draw(loaded, scenes, references, seeds)}
    found = evaluated(systems, scenes, references, loaded.vae, OUTPUT / "evaluation")

    table = Table("", *systems, title=f"{N_SCENES} scenes of two subjects that training never saw")
    for name, values in found.items():
        table.add_row(name, *(f"{values[system].mean():.3f}" for system in systems))
    print(table)
    both = {name: np.concatenate([*values.values()]) for name, values in found.items()}
    for exact in ("exact/quality", "exact/identity"):
        rank = spearmanr(both["instances/identity"], both[exact]).statistic
        print(f"rank correlation of instances/identity with {exact}, over {len(both[exact])} images: {rank:.2f}")
    print(f"The report: {OUTPUT}/evaluation/report.html")


if __name__ == "__main__":
    main()
