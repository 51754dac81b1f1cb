# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def appended_tokens(
    denoiser: torch.nn.Module, tokens_BNC: torch.Tensor, position_ids: Callable[[tuple[int, int]], torch.Tensor]
) -> Iterator[None]:
    """
    Within it a pipeline's own calls of a FLUX.1-type denoiser see reference tokens behind the target's, and get a prediction of
    the target alone: the pipeline does all else, and knows nothing of them.

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
