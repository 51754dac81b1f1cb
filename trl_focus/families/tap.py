# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers.hooks._helpers import TransformerBlockRegistry


class BlockTap:
    """
    Reads the hidden states of a denoiser's blocks as they pass in a forward that happens anyway: no pass of its own, and
    nothing but what the reader returns is kept.

    Args:
        denoiser (`torch.nn.Module`):
            UNet or transformer.
        blocks (`list[str]`):
            Names of the blocks, as in `denoiser.named_modules()`; diffusers must know where their hidden states are.

    Raises:
        ValueError: If a block is not there, or of a kind that diffusers knows nothing of.
    """

    def __init__(self, denoiser: torch.nn.Module, blocks: list[str]):
        self._reader: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._read: list[torch.Tensor] = []
        modules = dict(denoiser.named_modules())
        for name in blocks:
            if name not in modules:
                numbered = [n for n in modules if n.split(".")[-1].isdigit() and n.count(".") == 1]
                raise ValueError(f"The denoiser has no block {name!r}. It has {', '.join(numbered)}.")
            # Hooks stay on for good, and are switched: putting them on and off would make compiled blocks recompile
            modules[name].register_forward_hook(self._hook(TransformerBlockRegistry.get(type(modules[name]))))

    def _hook(self, metadata):
        def hook(module, args, output):
            if self._reader is None:
                return
            if isinstance(output, tuple):
                output = output[metadata.return_hidden_states_index]
            with torch.no_grad():
                self._read.append(self._reader(output.detach()))

        return hook

    @contextmanager
    def reading(self, reader: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        """
        Within it, each forward of a block hands its hidden states of shape `(B, tokens, D)` to the reader. Outside of it
        nothing is read, so not when gradient checkpointing runs a block a second time.

        Yields:
            `list[torch.Tensor]`: what the reader returned, filled as the blocks run.
        """
        self._reader, self._read = reader, []
        try:
            yield self._read
        finally:
            self._reader = None
