# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Names to boxes: grounded detection."""

from collections.abc import Sequence

import PIL.Image
import torch

from .boxes import Found, distinct
from .models import load


LEAST = 0.01  # score below which a box says nothing, of the thousands that a detector gives


@torch.no_grad()
def detect(
    images: Sequence[PIL.Image.Image], names: Sequence[str], detector: str, batch_size: int = 8
) -> list[list[Found]]:
    """
    Where each image shows what its name says. Every image is asked for one name, so that any detector's scores can be
    compared: OWLv2, OWL-ViT, Grounding DINO and what else transformers has for zero-shot detection.

    Args:
        images (`Sequence[PIL.Image.Image]`), names (`Sequence[str]`):
            N RGB images, and for each what to look for: "a red backpack".
        detector (`str`):
            Id on the Hub, or a folder.
        batch_size (`int`, *optional*, defaults to `8`):
            Images in one forward pass.

    Returns:
        `list[list[Found]]`: For each image its distinct places, the surest first, within the image.

    Raises:
        OSError, ValueError, ImportError: If the detector can't be loaded.
    """
    processor, model = load("detector", detector)
    # OWL's processor encodes each text alone, so that only a fixed length fits them together
    padding = "max_length" if model.config.model_type.startswith("owl") else True
    found = []
    for start in range(0, len(images), batch_size):
        pictures = list(images[start : start + batch_size])
        asked = [[name] for name in names[start : start + batch_size]]
        inputs = processor(images=pictures, text=asked, padding=padding, truncation=True, return_tensors="pt")
        outputs = model(**inputs.to(model.device))
        sizes = [(picture.height, picture.width) for picture in pictures]
        results = processor.post_process_grounded_object_detection(outputs, threshold=LEAST, target_sizes=sizes)
        for result, (height, width) in zip(results, sizes, strict=True):
            # OWLv2 pads images to squares, and may find something there
            limits = result["boxes"].new_tensor([width, height, width, height])
            boxes = result["boxes"].clamp(min=0).minimum(limits).tolist()
            found.append(distinct(map(Found, map(tuple, boxes), result["scores"].tolist())))
    return found
