# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The models that find subjects, each with its processor."""

from functools import cache
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel


# Kind -> what transformers loads the model and its processor with
KINDS = {
    "detector": (transformers.AutoModelForZeroShotObjectDetection, transformers.AutoProcessor),
    "segmenter": (transformers.AutoModelForMaskGeneration, transformers.AutoProcessor),
    "matcher": (transformers.AutoModel, transformers.AutoImageProcessor),
}


@cache
def load(kind: str, name: str) -> tuple[Any, PreTrainedModel]:
    """
    Loads a model once for the process, onto the accelerator where there is one.

    Args:
        kind (`str`):
            `"detector"`, `"segmenter"` or `"matcher"`.
        name (`str`):
            Id on the Hub, or a folder.

    Returns:
        `tuple`: The processor, and the model in fp32, not in training.

    Raises:
        OSError: If there is no such model.
        ValueError: If it is a model of another kind.
        ImportError: If its processor needs a package that is not installed.
    """
    model_class, processor_class = KINDS[kind]
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:
        model = model_class.from_pretrained(name, dtype=torch.float32)
    except OSError as error:  # which does not always say what could not be loaded
        raise OSError(f"the {kind} {name} can't be loaded: {error}") from error
    return processor_class.from_pretrained(name), model.to(device).eval()
