# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Draws many scenes at once, and scores them. The pipeline itself would give all prompts of a batch the same references."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import PIL.Image
import torch

from trl_focus.data.collator import image_to_tensor
from trl_focus.families.flux2 import Flux2

from .pipeline import ENCODE_PROMPT_KWARGS, LATENT_CHANNELS, N_STEPS
from .scorer import score_all
from .world import SCENE, TOKEN, Scene, draw_scene, generator, prompt_of, references_of


@torch.no_grad()
def draw(
    pipeline,
    scenes: Sequence[Scene],
    references: Sequence[Sequence[PIL.Image.Image]],
    seeds: Sequence[int],
    n_steps: int = N_STEPS,
    batch_size: int = 64,
) -> np.ndarray:
    """
    Draws scenes of one number of subjects with the pipeline's denoiser, as its own call would one by one.

    Args:
        pipeline ([`~diffusers.Flux2KleinPipeline`]):
            The base, with or without a LoRA.
        scenes (`Sequence[Scene]`):
            What is asked for.
        references (`Sequence[Sequence[PIL.Image.Image]]`):
            References of each scene.
        seeds (`Sequence[int]`):
            Seed of each scene's noise.
        n_steps (`int`, *optional*):
            Steps of the sampler.
        batch_size (`int`, *optional*, defaults to `64`):
            Scenes in one forward.

    Returns:
        `np.ndarray` of shape `(scenes, SCENE, SCENE, 3)` and dtype uint8.
    """
    family = Flux2(pipeline, ENCODE_PROMPT_KWARGS)
    cells, device = SCENE // TOKEN, family.denoiser.device
    sigmas = torch.linspace(1, 1 / n_steps, n_steps).tolist() + [0.0]
    images = []
    for start in range(0, len(scenes), batch_size):
        part = slice(start, start + batch_size)
        prompt = family.encode_prompt([prompt_of(scene) for scene in scenes[part]])
        latents = [
            family.encode_pixels(torch.stack([*map(image_to_tensor, column)]))
            for column in zip(*references[part], strict=True)
        ]
        x_BCHW = torch.stack(
            [
                torch.randn(4 * LATENT_CHANNELS, cells, cells, generator=torch.Generator().manual_seed(seed))
                for seed in seeds[part]
            ]
        ).to(device)
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            sigma_B = torch.full((len(x_BCHW),), sigma, device=device)
            velocity_BCHW = family.predict(family.denoiser, x_BCHW, sigma_B, prompt, latents)
            x_BCHW = x_BCHW + (following - sigma) * velocity_BCHW
        images += [decode(pipeline, some_BCHW) for some_BCHW in x_BCHW.split(64)]  # pictures take far more memory
    return np.concatenate(images)


@torch.no_grad()
def decode(pipeline, x_BCHW: torch.Tensor) -> np.ndarray:
    """Latents on the token grid to pictures in [0, 255]."""
    vae = pipeline.vae
    mean, std = (value[None, :, None, None] for value in (vae.bn.running_mean, vae.bn.running_var))
    std = (std + vae.config.batch_norm_eps).sqrt()
    pixels = vae.decode(pipeline._unpatchify_latents(x_BCHW * std + mean)).sample
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@cache
def scenes_of(split: str, n_scenes: int, n_subjects: int, unseen: bool = False, first: int = 0):
    """Scenes to draw, from number `first` on: what is asked for, references, and seeds of the noise."""
    rngs = [generator(split, 12, n_subjects, int(unseen), i) for i in range(first, first + n_scenes)]
    scenes = [draw_scene(rng, split, n_subjects, unseen) for rng in rngs]
    references = [references_of(scene.subjects, rng) for scene, rng in zip(scenes, rngs, strict=True)]
    return scenes, references, [int(rng.integers(2**31)) for rng in rngs]


def drawn_scores(
    pipeline, split: str, n_scenes: int, n_subjects: int = 2, unseen: bool = False, first: int = 0
) -> dict[str, list]:
    """Scores of each scene, by name."""
    scenes, references, seeds = scenes_of(split, n_scenes, n_subjects, unseen, first)
    images = draw(pipeline, scenes, references, seeds, batch_size=64 if pipeline.device.type == "cpu" else 512)
    scores = score_all(images, scenes)
    return {name: np.round(values, 4).tolist() for name, values in scores.items()}


def means(scores: dict[str, list]) -> dict[str, float]:
    return {name: round(float(np.mean(values)), 4) for name, values in scores.items()}
