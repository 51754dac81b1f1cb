# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from .batches import RowKey
from .detail import DETAIL_COLUMNS
from .images import decode_image, mask_to_array
from .layout import LayoutRule
from .rows import reference_subject_indices


def _covering_box(size: tuple[int, int], target: tuple[int, int], at: tuple[float, float]) -> tuple[float, ...]:
    """Largest box (left, top, right, bottom) of the target's aspect ratio in an image; sizes are (width, height)."""
    width, height = size
    scale = min(width / target[0], height / target[1])
    box_width, box_height = min(width, target[0] * scale), min(height, target[1] * scale)  # rounding must not exceed
    left, top = at[0] * (width - box_width), at[1] * (height - box_height)
    return left, top, left + box_width, top + box_height


def area_average(mask_HW: np.ndarray, box: tuple[float, ...], grid: tuple[int, int]) -> np.ndarray:
    """Mean of a mask over each cell of a grid laid over a box (left, top, right, bottom) of it, parts of pixels included."""

    def overlaps(start: float, stop: float, cells: int, pixels: int) -> np.ndarray:
        edges = np.linspace(start, stop, cells + 1)[:, None]
        pixel = np.arange(pixels)
        shared = np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel)
        return shared.clip(min=0) * (cells / (stop - start))

    left, top, right, bottom = box
    height, width = mask_HW.shape
    return overlaps(top, bottom, grid[0], height) @ mask_HW @ overlaps(left, right, grid[1], width).T


def image_to_tensor(image: PIL.Image.Image) -> torch.Tensor:
    """An RGB image as uint8 of shape `(3, H, W)`: a quarter of the bytes to move, and no dtype policy casts it."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Draws(NamedTuple):
    """
    What is drawn for a row of an epoch.

    Attributes:
        corner (`tuple[float, float]`):
            Where a random crop lies, each in [0, 1): from left to right, and from top to bottom.
        flip, dropped (`bool`):
            Whether a flip is due, and whether the prompt is emptied.
        seed (`int`):
            Of noise and noise level.
    """

    corner: tuple[float, float]
    flip: bool
    dropped: bool
    seed: int


@dataclass
class DataCollatorForDiffusionPreference:
    """
    Collates rows of one layout into tensors. Chosen, rejected and their masks share one crop, one flip and one caption
    drop, drawn from the seed, the epoch and the row's identity.

    Args:
        layout_rule ([`LayoutRule`]):
            The target size, and how the model sizes references.
        cell_size (`int`):
            Side of one cell of the denoiser's token grid, in pixels.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all draws, here and of noise and level.
        crop (`str`, *optional*, defaults to `"none"`):
            `"none"` resizes the whole image to the target size; `"center"` and `"random"` cut out the target's aspect
            ratio first.
        random_flip (`bool`, *optional*, defaults to `False`):
            Whether to mirror half of the pairs (not their references).
        caption_dropout (`float`, *optional*, defaults to `0.0`):
            Probability in [0, 1] that a pair's prompt is emptied.

    Returns (from `__call__`) a dictionary, for B pairs, N references, S subjects:
        - `prompt` (`list[str]`)
        - `chosen`, `rejected` (uint8 of shape `(B, 3, H, W)`)
        - `references` (list of N uint8 tensors of shape `(B, 3, h, w)`)
        - `prompt_references` (list of B lists of N PIL images): the references as the prompt's encoder sees them; the lists
          are empty if it does not look at any
        - `chosen_masks`, `rejected_masks` (float of shape `(B, S, H / cell, W / cell)` in [0, 1], area-averaged; only
          where every row has them; an absent subject is all zero)
        - `reference_masks` (list of N float tensors of shape `(B, h / cell, w / cell)` in [0, 1], resized as their
          references; 1 where a row has none)
        - `reference_subjects` (long of shape `(B, N)`: the subject, in [0, S), that each reference shows)
        - `chosen_detail`, `rejected_detail` (float of shape `(B, H / cell, W / cell)` in [0, 1]; where rows have them)
        - `counts` (float of shape `(B,)`): 1, or 0 for a row that only fills up the batch
        - `row`, `epoch`, `seed` (`list[int]`)
    """

    layout_rule: LayoutRule
    cell_size: int
    seed: int = 0
    crop: str = "none"
    random_flip: bool = False
    caption_dropout: float = 0.0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        pairs = [self.pair(row) for row in rows]
        return {**self.collate(pairs), "prompt_references": [pair["prompt_references"] for pair in pairs]}

    def collate(self, pairs: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows as `pair` makes them, stacked."""
        batch = {name: [pair[name] for pair in pairs] for name in ("prompt", "row", "epoch", "seed")}
        for name in ("chosen", "rejected", "counts", "reference_subjects", *DETAIL_COLUMNS):
            if name in pairs[0]:
                batch[name] = torch.stack([pair[name] for pair in pairs])
        for name in ("references", "reference_masks"):
            batch[name] = [torch.stack(images) for images in zip(*(pair[name] for pair in pairs), strict=True)]
        for name in ("chosen_masks", "rejected_masks"):
            masks = [pair[name] for pair in pairs]
            if all(mask is not None for mask in masks):
                subjects = max(len(mask) for mask in masks)
                batch[name] = torch.stack([F.pad(mask, (0, 0, 0, 0, 0, subjects - len(mask))) for mask in masks])
        return batch

    def draws(self, key: RowKey) -> Draws:
        """What is drawn for a row of an epoch, whatever batch it is in."""
        seeds = np.random.SeedSequence([self.seed, key.epoch, key.row])
        rng = np.random.default_rng(seeds)
        corner, flip, dropped = tuple(rng.random(2)), rng.random() < 0.5, rng.random() < self.caption_dropout
        return Draws(corner, flip, dropped, int(seeds.generate_state(1, np.uint64)[0]))

    def pair(self, row: dict[str, Any]) -> dict[str, Any]:
        """One row as tensors."""
        key: RowKey = row["key"]
        draws = self.draws(key)
        at = draws.corner if self.crop == "random" else (0.5, 0.5)
        flip = draws.flip and self.random_flip

        images = {name: decode_image(row[name]).convert("RGB") for name in ("chosen", "rejected")}
        references = [decode_image(value).convert("RGB") for value in row.get("references") or []]
        height, width = self.layout_rule.target(*(image.size for image in images.values()))

        def box(size: tuple[int, int]) -> tuple[float, ...]:
            return (0, 0, *size) if self.crop == "none" else _covering_box(size, (width, height), at)

        def place(image: PIL.Image.Image) -> PIL.Image.Image:
            image = image.resize((width, height), PIL.Image.Resampling.LANCZOS, box(image.size))
            return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if flip else image

        def masks(name: str) -> torch.Tensor | None:
            values = row.get(f"{name}_masks")
            if values is None:
                return None
            grid = height // self.cell_size, width // self.cell_size
            cells_SHW = torch.zeros(len(values), *grid)
            for cells_HW, value in zip(cells_SHW, values, strict=True):
                if (mask_HW := mask_to_array(value)) is not None:
                    cells_HW.copy_(torch.from_numpy(area_average(mask_HW, box(mask_HW.shape[::-1]), grid)))
            return cells_SHW.flip(-1) if flip else cells_SHW

        def detail(image: PIL.Image.Image) -> torch.Tensor:
            grid = height // self.cell_size, width // self.cell_size
            density_HW = area_average(np.asarray(image, np.float32) / 255, box(image.size), grid)
            return torch.from_numpy(np.flip(density_HW, -1).copy() if flip else density_HW).float()

        rule = self.layout_rule.references and self.layout_rule.references.among(len(references))
        seen = [rule.prepare_for_prompt(image) for image in references]
        references = [rule.prepare(image) for image in references]
        return {
            "prompt": "" if draws.dropped else row["prompt"],
            "references": [image_to_tensor(image) for image in references],
            "prompt_references": [image for image in seen if image is not None],
            "reference_masks": self.reference_masks(row, references, rule),
            "reference_subjects": torch.tensor(reference_subject_indices(row), dtype=torch.long),
            "chosen_masks": masks("chosen"),
            "rejected_masks": masks("rejected"),
            "counts": torch.tensor(float(key.counts)),
            "row": key.row,
            "epoch": key.epoch,
            "seed": draws.seed,
            **{name: image_to_tensor(place(image)) for name, image in images.items()},
            **{name: detail(row[name]) for name in DETAIL_COLUMNS if name in row},
        }

    def reference_masks(self, row: dict[str, Any], references: list[PIL.Image.Image], rule: Any) -> list[torch.Tensor]:
        """Mask of the subject on each prepared reference, on its token grid."""
        masks = []
        for image, value in zip(references, row.get("reference_masks") or [None] * len(references), strict=True):
            grid = image.height // self.cell_size, image.width // self.cell_size
            mask = np.ones(grid, np.float32)
            if value is not None:
                mask = PIL.Image.fromarray((mask_to_array(value) * 255).round().astype(np.uint8))
                mask = np.asarray(rule.prepare(mask), np.float32) / 255
                mask = area_average(mask, (0, 0, *image.size), grid).astype(np.float32)
            masks.append(torch.from_numpy(mask))
        return masks
