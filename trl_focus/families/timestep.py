# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import extract_model_from_parallel


def _give(module, args):
    return (*module.exact, *args[len(module.exact) :])


@contextmanager
def exact_timestep(denoiser: torch.nn.Module, *exact: torch.Tensor) -> Iterator[None]:
    """
    Within it a denoiser's `time_text_embed` gets this timestep, and the guidance too where it embeds one. Some round both to
    the dtype of their hidden states first, and a bf16 model would be told another noise level than its input has.
    """
    embedding = extract_model_from_parallel(denoiser).time_text_embed
    if not hasattr(embedding, "exact"):  # on for good, and switched: putting it on and off would recompile
        embedding.register_forward_pre_hook(_give)
    embedding.exact = exact
    try:
        yield
    finally:
        embedding.exact = ()
