# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import torch
import torch.distributed as dist


class FiniteUpdates:
    """
    Skips, on the device, every update whose gradient is not finite: weights stay as they were, moments see a gradient of
    zero. Attached to an optimizer's step, it never waits for the device.
    """

    def __init__(self):
        self.skipped = None  # number of updates skipped since the last look, on the device

    def attach(self, optimizer: torch.optim.Optimizer):
        """Registers the guard on an optimizer."""
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def pop(self) -> torch.Tensor | None:
        """How many updates were skipped since the last call (on the device), `None` before the first update."""
        skipped, self.skipped = self.skipped, None
        return skipped

    @torch.no_grad()
    def _before(self, optimizer, args, kwargs):
        self._parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not self._parameters:
            return
        gradients = [p.grad for p in self._parameters]
        finite = torch.stack(torch._foreach_norm(gradients, float("inf"))).isfinite().all().float()
        if dist.is_initialized():  # sharded gradients differ between processes
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        self._finite = finite > 0
        for gradient in gradients:
            gradient.masked_fill_(~self._finite, 0)
        self._kept = torch._foreach_add(self._parameters, 0)

    @torch.no_grad()
    def _after(self, optimizer, args, kwargs):
        if not self._parameters:
            return
        for parameter, kept in zip(self._parameters, self._kept, strict=True):
            parameter.copy_(torch.where(self._finite, parameter, kept))
        skipped = (~self._finite).long()
        self.skipped = skipped if self.skipped is None else self.skipped + skipped
        del self._parameters, self._kept, self._finite
