# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Reference tokens behind the target's, for pipelines that know nothing of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import PIL.Image
import torch


def as_tokens(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Latents on the token grid as a sequence of shape `(B, H W, C)`."""
    return x_BCHW.flatten(2).transpose(1, 2)


@contextmanager
def appended_tokens(
    denoiser: torch.nn.Module, tokens_BNC: torch.Tensor, position_ids: Callable[[tuple[int, int]], torch.Tensor]
) -> Iterator[None]:
    """
    Within it a pipeline's own calls of a FLUX.1-type denoiser see reference tokens, and get a prediction of the target alone:
    the pipeline does all else.

    Args:
        denoiser (`torch.nn.Module`):
            The pipeline's transformer.
        tokens_BNC (`torch.Tensor` of shape `(1, N, C)`):
            Tokens of all references.
        position_ids (`Callable`):
            Takes the target's token grid (height, width) and returns the position ids of all images, of shape `(tokens, 3)`.
    """

    def append(module, args, kwargs):
        target_BNC = kwargs["hidden_states"]
        grid = tuple((kwargs["img_ids"][-1, 1:] + 1).int().tolist())  # ids end with the last row and column
        references_BNC = tokens_BNC.to(target_BNC).expand(len(target_BNC), -1, -1)
        hidden_states = torch.cat([target_BNC, references_BNC], dim=1)
        return args, {**kwargs, "hidden_states": hidden_states, "img_ids": position_ids(grid)}

    def cut(module, args, output):
        return (output[0][:, : -tokens_BNC.shape[1]],)

    handles = [  # outermost: other hooks see what the denoiser sees
        denoiser.register_forward_pre_hook(append, with_kwargs=True, prepend=True),
        denoiser.register_forward_hook(cut),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def sample_appended(
    family, prompt: str | list[str], references: list[PIL.Image.Image], reference_resolution: int | None, **kwargs
) -> Any:
    """[`Family.sample`] for a family whose `position_ids` takes a device and the token grids of target and references."""
    if not references:
        return family.pipeline(prompt=prompt, **kwargs)
    rule, device = family.reference_rule(reference_resolution), family.pipeline._execution_device
    to_pixels = family.pipeline.image_processor.preprocess
    latents = [family.encode_image(to_pixels(rule.prepare(image)).to(device)) for image in references]
    grids = [tuple(x_BCHW.shape[-2:]) for x_BCHW in latents]
    tokens_BNC = torch.cat([as_tokens(x_BCHW) for x_BCHW in latents], dim=1)
    with appended_tokens(family.denoiser, tokens_BNC, lambda grid: family.position_ids(device, grid, *grids)):
        return family.pipeline(prompt=prompt, **kwargs)
