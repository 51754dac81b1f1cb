# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Sequence
from typing import Any

import PIL.Image

from .families import family_class


def sample_with_references(
    pipeline,
    prompt: str | list[str],
    references: Sequence[PIL.Image.Image],
    reference_positions: str | None = None,
    reference_resolution: int | None = None,
    **pipeline_kwargs,
) -> Any:
    """
    Calls a pipeline with references that it can't take itself, placed and sized as they were in training: any number for
    FLUX.1 Kontext, which takes one, and for a FLUX.1 with a LoRA that was trained so.

    Example:

    ```python
    >>> pipe.load_lora_weights("my-lora")
    >>> image = sample_with_references(pipe, "a cat with a hat", [cat, hat], "diagonal").images[0]
    ```

    Args:
        pipeline (`DiffusionPipeline`):
            Loaded pipeline, with its LoRA, offloaded or not.
        prompt (`str` or `list[str]`):
            The prompt.
        references (`Sequence[PIL.Image.Image]`):
            Reference images.
        reference_positions, reference_resolution (*optional*):
            As in the [`DiffusionDPOConfig`] that the LoRA was trained with.
        pipeline_kwargs:
            Everything else, as for the pipeline.

    Returns:
        What the pipeline returns.
    """
    family = family_class([cls.__name__ for cls in type(pipeline).__mro__])(pipeline)
    if reference_positions is not None:
        family.place_references(reference_positions)
    if references and family.reference_rule() is None:
        raise ValueError(
            f"{type(pipeline).__name__} takes no references. With a LoRA that was trained to look at some, give the "
            "`reference_positions` of its training."
        )
    images = [image.convert("RGB") for image in references]
    return family.sample(prompt, images, reference_resolution, **pipeline_kwargs)
