# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Ways to spoil one subject of an image, and nothing else: pure functions of pixels, masks and a generator of random numbers.

Array names carry their shape: H W the image, C its 3 channels, S subjects. Pixels and masks lie in [0, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageFilter
import torch
import torch.nn.functional as F

from ..evaluation.instances import mask_box


LEAST_CHANGE = 0.02  # mean difference of the pixels of the mask: less teaches nothing


class Corrupted(NamedTuple):
    """
    Attributes:
        pixels_HWC (`np.ndarray`):
            The spoilt image.
        masks_SHW (`np.ndarray`):
            Where each subject is now; black for one that is gone.
    """

    pixels_HWC: np.ndarray
    masks_SHW: np.ndarray


Corruption = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], Corrupted]


def _blend(pixels_HWC: np.ndarray, other_HWC: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    return pixels_HWC + mask_HW[:, :, None] * (other_HWC - pixels_HWC)


def _side(mask_HW: np.ndarray) -> int:
    left, top, right, bottom = mask_box(mask_HW)
    return max(right - left, bottom - top)


def colour(pixels_HWC: np.ndarray, masks_SHW: np.ndarray, subject: int, rng: np.random.Generator) -> Corrupted:
    """Another hue; grey becomes coloured."""
    hue, saturation, value = np.moveaxis(np.asarray(PIL.Image.fromarray(_bytes(pixels_HWC)).convert("HSV")), -1, 0)
    hue = (hue + rng.integers(64, 193)).astype(np.uint8)  # at least a quarter of the circle of hues
    other = np.stack([hue, np.maximum(saturation, 128), value], axis=-1)
    other_HWC = np.asarray(PIL.Image.fromarray(other, "HSV").convert("RGB"), dtype=np.float32) / 255
    return Corrupted(_blend(pixels_HWC, other_HWC, masks_SHW[subject]), masks_SHW)


def texture(pixels_HWC: np.ndarray, masks_SHW: np.ndarray, subject: int, rng: np.random.Generator) -> Corrupted:
    """Stripes or checks, dark and light, over it."""
    height, width = masks_SHW.shape[1:]
    period = max(_side(masks_SHW[subject]) / rng.uniform(3, 7), 2)
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:height, :width]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    bright = along % period < period / 2
    if rng.random() < 0.5:
        bright ^= across % period < period / 2
    other_HWC = np.where(bright[:, :, None], 0.5 + 0.5 * pixels_HWC, 0.4 * pixels_HWC)
    return Corrupted(_blend(pixels_HWC, other_HWC, masks_SHW[subject]), masks_SHW)


def swap(pixels_HWC: np.ndarray, masks_SHW: np.ndarray, subject: int, rng: np.random.Generator) -> Corrupted:
    """What another subject looks like, in its own shape."""
    others = [s for s in range(len(masks_SHW)) if s != subject and _side(masks_SHW[s])]
    if not others:
        raise ValueError("there is no other subject with a mask to swap with")
    other = others[rng.integers(len(others))]
    from_box, to_box = mask_box(masks_SHW[other]), mask_box(masks_SHW[subject])
    # Around the other subject is what is not it: its own colours are drawn outwards before it is cut out
    filled = fill(pixels_HWC, 1 - (masks_SHW[other] > 0.5).astype(np.float32))
    size = to_box[2] - to_box[0], to_box[3] - to_box[1]
    patch = PIL.Image.fromarray(_bytes(filled)).resize(size, PIL.Image.Resampling.BICUBIC, box=from_box)
    other_HWC = pixels_HWC.copy()
    other_HWC[to_box[1] : to_box[3], to_box[0] : to_box[2]] = np.asarray(patch, dtype=np.float32) / 255
    return Corrupted(_blend(pixels_HWC, other_HWC, masks_SHW[subject]), masks_SHW)


def blur(pixels_HWC: np.ndarray, masks_SHW: np.ndarray, subject: int, rng: np.random.Generator) -> Corrupted:
    """Out of focus, by an eighth to a fourth of its size."""
    radius = _side(masks_SHW[subject]) * rng.uniform(0.125, 0.25)
    blurred = PIL.Image.fromarray(_bytes(pixels_HWC)).filter(PIL.ImageFilter.GaussianBlur(radius))
    other_HWC = np.asarray(blurred, dtype=np.float32) / 255
    return Corrupted(_blend(pixels_HWC, other_HWC, masks_SHW[subject]), masks_SHW)


def warp(pixels_HWC: np.ndarray, masks_SHW: np.ndarray, subject: int, rng: np.random.Generator) -> Corrupted:
    """Bent out of shape, within its outline: each pixel is another one's, up to a fifth of its size away."""
    left, top, right, bottom = mask_box(masks_SHW[subject])
    amplitude = 0.2 * _side(masks_SHW[subject])
    coarse = torch.from_numpy(rng.uniform(-amplitude, amplitude, (1, 2, 4, 4)).astype(np.float32))
    shift_2HW = F.interpolate(coarse, (bottom - top, right - left), mode="bicubic", align_corners=True)[0]
    y, x = torch.meshgrid(torch.arange(top, bottom), torch.arange(left, right), indexing="ij")
    height, width = masks_SHW.shape[1:]
    grid = torch.stack([(x + shift_2HW[0]) / (width - 1), (y + shift_2HW[1]) / (height - 1)], dim=-1) * 2 - 1
    # of its own pixels alone: the ground beside it is no part of it
    own = torch.from_numpy(fill(pixels_HWC, 1 - (masks_SHW[subject] > 0.5).astype(np.float32))).permute(2, 0, 1)
    bent = F.grid_sample(own[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
    other_HWC = pixels_HWC.copy()
    other_HWC[top:bottom, left:right] = bent.permute(1, 2, 0).numpy()
    return Corrupted(_blend(pixels_HWC, other_HWC, masks_SHW[subject]), masks_SHW)


def duplicate(pixels_HWC: np.ndarray, masks_SHW: np.ndarray, subject: int, rng: np.random.Generator) -> Corrupted:
    """A second one elsewhere, where no subject is. The mask holds both."""
    left, top, right, bottom = mask_box(masks_SHW[subject])
    height, width = masks_SHW.shape[1:]
    taken_HW = masks_SHW.max(axis=0) > 0.5
    copied_HW = masks_SHW[subject, top:bottom, left:right]
    for _ in range(50):
        y, x = rng.integers(height - (bottom - top) + 1), rng.integers(width - (right - left) + 1)
        place = slice(y, y + bottom - top), slice(x, x + right - left)
        if not (taken_HW[place] & (copied_HW > 0.5)).any():
            break
    else:
        raise ValueError("there is no room for a second one")
    pixels_HWC, masks_SHW = pixels_HWC.copy(), masks_SHW.copy()
    pixels_HWC[place] = _blend(pixels_HWC[place], pixels_HWC[top:bottom, left:right].copy(), copied_HW)
    masks_SHW[subject][place] = np.maximum(masks_SHW[subject][place], copied_HW)
    return Corrupted(pixels_HWC, masks_SHW)


def drop(pixels_HWC: np.ndarray, masks_SHW: np.ndarray, subject: int, rng: np.random.Generator) -> Corrupted:
    """Gone; what surrounds it fills its place."""
    masks_SHW = masks_SHW.copy()
    # a little more than the mask, whose edge has colours of both
    hidden_HW = torch.from_numpy(masks_SHW[subject] > 0.05).float()
    hidden_HW = F.max_pool2d(hidden_HW[None, None], 5, stride=1, padding=2)[0, 0].numpy()
    others_HW = np.delete(masks_SHW, subject, axis=0).max(axis=0, initial=0.0)
    filled_HWC = fill(pixels_HWC, np.maximum(hidden_HW, others_HW > 0.05))
    masks_SHW[subject] = 0
    return Corrupted(_blend(pixels_HWC, filled_HWC, hidden_HW * (1 - others_HW)), masks_SHW)


CORRUPTIONS: dict[str, Corruption] = {
    "colour": colour,
    "texture": texture,
    "swap": swap,
    "blur": blur,
    "warp": warp,
    "duplicate": duplicate,
    "drop": drop,
}


def fill(pixels_HWC: np.ndarray, hidden_HW: np.ndarray) -> np.ndarray:
    """
    Fills a part of an image with a smooth continuation of the rest: each hidden pixel is the mean of those seen in the
    smallest square around it that shows some, out of squares of 2, 4, 8, ... pixels.

    Args:
        pixels_HWC (`np.ndarray` of shape `(H, W, 3)`):
            The image.
        hidden_HW (`np.ndarray` of shape `(H, W)`):
            1 where it is hidden, 0 where it is seen.

    Returns:
        `np.ndarray` of shape `(H, W, 3)`. An image that is hidden as a whole becomes black.
    """
    seen = torch.from_numpy(1 - np.asarray(hidden_HW, dtype=np.float32))[None, None]
    image = torch.from_numpy(pixels_HWC.astype(np.float32)).permute(2, 0, 1)[None]
    levels = [(image * seen, seen)]
    while max(levels[-1][1].shape[2:]) > 1:
        levels.append(tuple(F.avg_pool2d(part, 2, ceil_mode=True) for part in levels[-1]))
    sums, weight = levels.pop()
    found = sums / weight.clamp(min=1e-6)
    for sums, weight in reversed(levels):
        coarse = F.interpolate(found, sums.shape[2:], mode="bilinear")
        found = torch.where(weight > 0, sums / weight.clamp(min=1e-6), coarse)
    return found[0].permute(1, 2, 0).numpy()


def corrupt(
    pixels_HWC: np.ndarray,
    masks_SHW: np.ndarray,
    kinds: tuple[str, ...],
    rng: np.random.Generator,
) -> tuple[Corrupted, str, int]:
    """
    Spoils one of the subjects in one way, both drawn at random from those that can be.

    Args:
        pixels_HWC (`np.ndarray` of shape `(H, W, 3)`):
            Image in [0, 1].
        masks_SHW (`np.ndarray` of shape `(S, H, W)`):
            Masks of the subjects in it, in [0, 1].
        kinds (`tuple[str, ...]`):
            Out of `CORRUPTIONS`.
        rng (`np.random.Generator`):
            What it is drawn from.

    Returns:
        `tuple[Corrupted, str, int]`: What it becomes, in which way, and of which subject.

    Raises:
        ValueError: If no subject has a mask, or none can be spoilt in any of these ways so that it shows.
    """
    shown = [subject for subject in range(len(masks_SHW)) if _side(masks_SHW[subject])]
    if not shown:
        raise ValueError("no subject has a mask, so there is nothing to spoil")
    ways = [(subject, kind) for subject in shown for kind in kinds]
    for way in rng.permutation(len(ways)):
        subject, kind = ways[way]
        try:
            found = CORRUPTIONS[kind](pixels_HWC, masks_SHW, subject, rng)
        except ValueError:
            continue
        changed = np.abs(found.pixels_HWC - pixels_HWC).sum() / 3
        if changed >= LEAST_CHANGE * (masks_SHW[subject] > 0.5).sum():
            return found, kind, subject
    raise ValueError(f"no subject can be spoilt by {', '.join(kinds)} so that it shows")


def _bytes(pixels_HWC: np.ndarray) -> np.ndarray:
    return (255 * pixels_HWC).round().clip(0, 255).astype(np.uint8)
