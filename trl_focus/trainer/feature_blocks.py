# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Which block of a denoiser tells subjects apart best? Measured on data with masks, before training."""

from itertools import islice

import torch

from ..families.tap import BlockTap
from ..noise import noised_at
from .diagnostic import LEVELS
from .focus_dpo_trainer import FocusDPOTrainer


@torch.no_grad()
def score_feature_blocks(trainer: FocusDPOTrainer, n_batches: int = 4) -> dict[str, list[float]]:
    """
    How well each block's similarity to a reference tells the cells of its subject from all others of a chosen image.

    Args:
        trainer ([`FocusDPOTrainer`]):
            A trainer whose map compares images with references, and whose data has masks and references.
        n_batches (`int`, *optional*, defaults to `4`):
            Batches of the training data that are looked at.

    Returns:
        `dict[str, list[float]]`: For each block, from the best on average, the area under the ROC curve at the noise levels
        0.125, 0.375, 0.625 and 0.875: 1 where every cell of a subject is more similar to its reference than every other
        cell, 0.5 at chance.

    Raises:
        ValueError: If the trainer's map compares nothing, or no image shows a referenced subject.
    """
    if trainer._tap is None:
        raise ValueError("The trainer's map compares no references: choose `focus_map='focus'` and a matching.")
    blocks = trainer.family.image_blocks
    loader = trainer.get_train_dataloader()  # which may look through the trainer's own tap
    own_tap, trainer._tap = trainer._tap, BlockTap(trainer.family.denoiser, blocks)
    try:
        areas = {block: [[] for _ in LEVELS] for block in blocks}
        for batch in islice(loader, n_batches):
            for number, level in enumerate(LEVELS):
                x_BCHW, prompt, references = trainer._encode(batch)
                noised = noised_at(trainer.family.process, x_BCHW, batch["seed"], level)
                with trainer.watch(batch, noised, prompt, references) as similarities, trainer._autocast():
                    trainer.family.predict(trainer.model, noised.noisy_BCHW, noised.timestep_B, prompt, references)
                for block, similarity_BRHW in zip(blocks, similarities, strict=True):
                    areas[block][number] += _areas(similarity_BRHW, batch)
    finally:
        trainer._tap = own_tap
    if not areas[blocks[0]][0]:
        raise ValueError("No chosen image shows a subject that has a reference: look at the masks.")
    scores = {block: [sum(values) / len(values) for values in levels] for block, levels in areas.items()}
    return dict(sorted(scores.items(), key=lambda score: -sum(score[1])))


def _areas(similarity_BRHW: torch.Tensor, batch: dict) -> list[float]:
    """Area under the ROC curve of each reference on each chosen image that shows its subject, but not everywhere."""
    areas = []
    for similarities_RHW, masks_SHW, subjects_R in zip(
        similarity_BRHW, batch["chosen_masks"], batch["reference_subjects"], strict=False
    ):
        for similarity_HW, subject in zip(similarities_RHW, subjects_R, strict=True):
            inside = masks_SHW[subject] > 0.5
            if inside.any() and not inside.all():
                higher = similarity_HW[inside][:, None] - similarity_HW[~inside][None]
                areas.append(((higher > 0) + 0.5 * (higher == 0)).mean().item())
    return areas
