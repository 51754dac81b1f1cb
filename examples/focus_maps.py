# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Draws the pictures of docs/focus.md: detail of photographs, and the parts of a focus map over noise levels.

    python -m examples.focus_maps
"""

from pathlib import Path

import numpy as np
import PIL.Image
import skimage.data
import torch

from trl_focus import FocusDPOConfig, FocusDPOTrainer, LogFocusMapsCallback
from trl_focus.focus.complexity import complexity
from trl_focus.focus.drawing import overlay, sheet

from .photographs.pipeline import ENCODE_PROMPT_KWARGS, tiny_flux2_klein
from .photographs.scenes import make_pairs


IMAGES, OUTPUT = Path("docs/images"), Path("outputs/focus_maps")
PHOTOGRAPHS = {"Chelsea the cat": "chelsea", "a cup of coffee": "coffee", "an astronaut": "astronaut"}
SIDE, CELL = 512, 16  # pixels


def flat_edge_and_noise() -> PIL.Image.Image:
    """A third of each: one grey, one edge, noise in each pixel."""
    pixels = np.full((SIDE, SIDE, 3), 90, np.uint8)
    third = SIDE // 3
    pixels[:, third : 2 * third][:, third // 2 :] = 200
    pixels[:, 2 * third :] = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE - 2 * third, 1))
    return PIL.Image.fromarray(pixels)


def square(image: PIL.Image.Image) -> PIL.Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), PIL.Image.Resampling.LANCZOS)


def draw_detail(path: Path):
    """Information density of photographs, and of what it is known for."""
    images = [square(PIL.Image.fromarray(getattr(skimage.data, name)())) for name in PHOTOGRAPHS.values()]
    images.append(flat_edge_and_noise())
    pixels_BCHW = torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2)
    maps = complexity(pixels_BCHW, CELL).numpy()
    drawn = [overlay(image, detail) for image, detail in zip(images, maps, strict=True)]
    sheet([images, drawn], [*PHOTOGRAPHS, "flat | edge | noise"], ["", "information density, from 0 to 1"]).quantize(
        256
    ).save(path)


def draw_parts(path: Path, kind: str = "swap"):
    """One pair of photographs at several noise levels, in a real step of training."""
    pairs = make_pairs(8, size=(256, 256), seed=3, reference_size=(128, 128))
    pair = next(i for i, damage in enumerate(pairs["damage"]) if damage == kind)
    args = FocusDPOConfig(
        output_dir=str(OUTPUT),
        resolution=256,
        detail_threshold=1.0,
        encode_prompt_kwargs=ENCODE_PROMPT_KWARGS,
        per_device_train_batch_size=16,
        max_steps=1,
        save_strategy="no",
        report_to="none",
    )
    repeated = pairs.select([pair] * 16)  # each row has a noise level of its own
    callback = LogFocusMapsCallback(n_pairs=3)
    FocusDPOTrainer(tiny_flux2_klein(hidden_size=64), args=args, train_dataset=repeated, callbacks=[callback]).train()
    PIL.Image.open(OUTPUT / "focus_maps" / "step-000000.png").quantize(256).save(path)


if __name__ == "__main__":
    draw_detail(IMAGES / "detail.png")
    draw_parts(IMAGES / "focus_maps.png")
