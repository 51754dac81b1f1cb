# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Bytes of tensors that live during a forward and a backward pass, real tensors or fake."""

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it: those that live now, and the most at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage()) not in known:
                self._add(storage)
        return output

    def _add(self, storage: torch.UntypedStorage):
        if storage in self.known:
            return
        self.known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, size: int):
        self.now -= size


def live_bytes(call: Callable[[], torch.Tensor]) -> tuple[int, int]:
    """Bytes that a forward pass leaves for the backward pass, its output included, and the most that both hold at a time."""
    with LiveBytes() as live:
        output = call()
        left = live.now
        torch.autograd.backward(output.sum())
    return left, live.peak
