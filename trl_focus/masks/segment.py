# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Boxes to masks: SAM."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch

from .boxes import Box
from .models import load


class Outline(NamedTuple):
    """
    Attributes:
        mask_HW (`np.ndarray` of shape `(H, W)`, bool):
            Pixels of the subject.
        score (`float`):
            Intersection over union with the true mask, as the model estimates it, in [0, 1].
    """

    mask_HW: np.ndarray
    score: float


@torch.no_grad()
def segment(
    images: Sequence[PIL.Image.Image], boxes: Sequence[Sequence[Box]], segmenter: str, batch_size: int = 8
) -> list[list[Outline]]:
    """
    The mask of what stands in each box.

    Args:
        images (`Sequence[PIL.Image.Image]`):
            N RGB images of any sizes.
        boxes (`Sequence[Sequence[Box]]`):
            For each image any number of boxes, in its pixels.
        segmenter (`str`):
            Id on the Hub, or a folder, of a SAM.
        batch_size (`int`, *optional*, defaults to `8`):
            Images in one forward pass.

    Returns:
        `list[list[Outline]]`: One outline for each box, of its image's size.

    Raises:
        OSError, ValueError, ImportError: If the model can't be loaded.
    """
    outlines: list[list[Outline]] = [[] for _ in images]
    alike = defaultdict(list)  # images with as many boxes go into one batch
    for number, asked in enumerate(boxes):
        alike[len(asked)].append(number)
    for numbers in (alike[count] for count in alike if count):
        for start in range(0, len(numbers), batch_size):
            batch = numbers[start : start + batch_size]
            pictures = [images[number] for number in batch]
            found = _segment(pictures, [[list(box) for box in boxes[number]] for number in batch], segmenter)
            for number, outlined in zip(batch, found, strict=True):
                outlines[number] = outlined
    return outlines


def _segment(images: list[PIL.Image.Image], boxes: list[list[list[float]]], segmenter: str) -> list[list[Outline]]:
    processor, model = load("segmenter", segmenter)
    inputs = processor(images=images, input_boxes=boxes, return_tensors="pt")
    if inputs["input_boxes"].is_floating_point():
        inputs["input_boxes"] = inputs["input_boxes"].float()
    # SAM 2 does not tell the size before padding, which it has none of
    sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    outputs = model(**inputs.to(model.device), multimask_output=False)
    masks = processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)
    scores_NK = outputs.iou_scores.squeeze(2).clamp(0, 1).tolist()
    return [
        [Outline(mask_HW, score) for mask_HW, score in zip(masks_K1HW[:, 0].numpy(), scores, strict=True)]
        for masks_K1HW, scores in zip(masks, scores_NK, strict=True)
    ]
