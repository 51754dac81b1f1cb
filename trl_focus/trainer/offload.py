# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Frozen weights of a denoiser's blocks rest in host memory, and are on the device for one block at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks


def blocks_of(denoiser: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks that diffusers says a denoiser is repeated of, those that it compiles as regions."""
    names = getattr(denoiser, "_repeated_blocks", None) or ()
    return [part for part in denoiser.modules() if type(part).__name__ in names]


def offload_blocks(policy: torch.nn.Module, denoisers: list[torch.nn.Module], device: torch.device):
    """
    Moves the frozen weights of blocks to host memory, from where each block brings its own while it computes, forward and
    backward. Weights that are trained, and those outside of blocks, are left alone.

    Args:
        policy (`torch.nn.Module`):
            Model that is trained, which DDP may wrap.
        denoisers (`list[torch.nn.Module]`):
            Its denoiser, and that of a reference of its own; one block of all of them is on the device at a time.
        device (`torch.device`):
            Where blocks compute.
    """
    place = _Place(device)
    blocks = [_Block(block, place) for denoiser in denoisers for block in blocks_of(denoiser)]
    away = {id(weight) for block in blocks for weight in block.weights}
    # DDP takes no weights on two kinds of devices, and would send those of its first process to the others, which have them
    policy._ddp_params_and_buffers_to_ignore = [name for name, w in policy.named_parameters() if id(w) in away]


def undo_offload(denoiser: torch.nn.Module):
    """Gives the blocks of a denoiser their own ways back, if an earlier trainer took them."""
    for part in denoiser.modules():
        if isinstance(getattr(vars(part).get("forward"), "__self__", None), _Block):
            del part.forward, part._apply


class _Saved(NamedTuple):
    """What autograd keeps in place of a block's weight, or of a view of it."""

    block: "_Block"
    number: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Place:
    """Room on the device for the weights of one block: whichever needs it next takes it from the one before."""

    def __init__(self, device: torch.device):
        self.device = device
        self.clear()

    def clear(self):
        self.block, self.weights = None, []

    def bring(self, block: "_Block") -> list[torch.Tensor]:
        if self.block is not block:
            self.clear()  # first, so that two are never there at once
            self.weights = [copied(weight.data, self.device) for weight in block.weights]
            self.block = block
        return self.weights


def copied(weight: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on a device, of the same strides; from pinned memory without waiting."""
    return torch.empty_like(weight, device=device).copy_(weight, non_blocking=True)


class _Block:
    """A block, with its `forward` and with what moves modules about put in the place of its own."""

    def __init__(self, module: torch.nn.Module, place: _Place):
        self.place = place
        self.owners = [
            (owner._parameters, name)
            for owner in module.modules()
            for name, weight in owner._parameters.items()
            if weight is not None and not weight.requires_grad
        ]
        self.weights = [weights[name] for weights, name in self.owners]
        for weight in self.weights:
            weight.data = weight.data.to("cpu")
            if place.device.type == "cuda":
                weight.data = weight.data.pin_memory()
        self.module_forward, self.module_apply = module.forward, module._apply
        module.forward, module._apply = self.forward, self.apply

    def forward(self, *args, **kwargs) -> Any:
        with self.at_work(), saved_tensors_hooks(*self.saving()):
            return self.module_forward(*args, **kwargs)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within it the block's weights are on the device. If a backward pass may follow, they stay until their room is needed."""
        hosts = [weight.data for weight in self.weights]
        in_backward = torch._C._current_graph_task_id() != -1
        if not in_backward:  # weights may have changed since they were brought
            self.place.clear()
        try:
            for weight, on_device in zip(self.weights, self.place.bring(self), strict=True):
                weight.data = on_device
            yield
        finally:  # also where checkpointing ends a recomputation early, which it does by an exception
            for weight, host in zip(self.weights, hosts, strict=True):
                weight.data = host
            if not torch.is_grad_enabled():
                self.place.clear()

    def saving(self) -> tuple[Callable, Callable]:
        """
        How autograd saves tensors, and gets them back: weights are brought again, and all else is saved as it would have been.
        Only the innermost hooks see a tensor, so those of checkpointing around the block are called from here.
        """
        outer = torch._C._autograd._top_saved_tensors_default_hooks(True)
        pack_other, unpack_other = outer or [lambda tensor: tensor] * 2
        numbers = {weight.untyped_storage().data_ptr(): i for i, weight in enumerate(self.place.weights)}

        def pack(tensor: torch.Tensor) -> Any:
            number = numbers.get(tensor.untyped_storage().data_ptr())
            if number is None or tensor.dtype != self.weights[number].dtype:
                return pack_other(tensor)
            return _Saved(self, number, tensor.size(), tensor.stride(), tensor.storage_offset())

        def unpack(saved: Any) -> torch.Tensor:
            if not isinstance(saved, _Saved):
                return unpack_other(saved)
            return self.place.bring(saved.block)[saved.number].as_strided(saved.size, saved.stride, saved.offset)

        return pack, unpack

    def apply(self, function: Callable, recurse: bool = True) -> torch.nn.Module:
        """What `module.to` and its like do to all that is in the block but these weights."""
        for weights, name in self.owners:
            weights[name] = None
        try:
            return self.module_apply(function, recurse)
        finally:
            for (weights, name), weight in zip(self.owners, self.weights, strict=True):
                weights[name] = weight
