# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from transformers.trainer_utils import get_last_checkpoint


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor; it may be empty."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


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
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [_local(parameter.grad) for parameter in trained]
        self._parameters = [_local(parameter) for parameter in trained]
        if getattr(optimizer, "found_inf", None) is not None:
            self._parameters = []  # in fp16 the gradient scaler skips, and overflows while it finds its scale are no fault
        if not self._parameters:
            return
        norms = torch._foreach_norm([gradient for gradient in gradients if gradient.numel()], float("inf"))
        finite = torch.stack([gradients[0].new_ones(()), *norms]).isfinite().all().float()
        if dist.is_initialized():  # sharded gradients differ between processes
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        self._broken = finite == 0
        for gradient in gradients:
            gradient.masked_fill_(self._broken, 0)
        self._kept = torch._foreach_add(self._parameters, 0)

    @torch.no_grad()
    def _after(self, optimizer, args, kwargs):
        if not self._parameters:
            return
        for parameter, kept in zip(self._parameters, self._kept, strict=True):
            torch.where(self._broken, kept, parameter, out=parameter)
        skipped = self._broken.long()
        self.skipped = skipped if self.skipped is None else self.skipped + skipped
        del self._parameters, self._kept, self._broken


def _skipped_by_deepspeed(accelerator: Accelerator) -> int:
    """How many updates DeepSpeed left out by itself, before they came to the optimizer, on all processes alike."""
    engine = getattr(getattr(accelerator, "deepspeed_engine_wrapped", None), "engine", None)
    return 0 if engine is None or engine.fp16_enabled() else engine.skipped_steps  # in fp16 it finds its scale


class FiniteAlarm:
    """Remembers on the device which rows had a loss that is not finite, until somebody looks."""

    def __init__(self):
        self.updates = FiniteUpdates()
        self._flags: list[tuple[int, list[int], torch.Tensor]] = []  # step, rows, whether each is bad

    def observe(self, step: int, rows: list[int], loss_B: torch.Tensor, counts_B: torch.Tensor):
        """Takes in the losses of a batch; rows that do not count are left out."""
        self._flags.append((step, rows, ~loss_B.isfinite() & (counts_B > 0)))

    def check(self, accelerator: Accelerator, output_dir: str):
        """
        Waits for the device, and looks at all that was observed since the last look. Every process must call it.

        Raises:
            FloatingPointError: If a loss or an update was not finite on any process; the message names the rows.
        """
        flags, self._flags = self._flags, []
        if not flags:
            return
        bad = torch.cat([bad_B for _, _, bad_B in flags])
        skipped = self.updates.pop()
        found = torch.stack([bad.sum(), bad.new_zeros((), dtype=torch.long) if skipped is None else skipped])
        if not accelerator.reduce(found, reduction="sum").any() and not _skipped_by_deepspeed(accelerator):
            return
        rows = [(step, row) for step, batch, _ in flags for row in batch]
        rows = gather_object([row for row, is_bad in zip(rows, bad.tolist(), strict=True) if is_bad])
        where = ", ".join(f"row {row} (step {step})" for step, row in sorted({*rows})[:10])
        folder = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
        raise FloatingPointError(
            f"{f'The loss is not finite at {where}' if rows else 'A gradient is not finite'}; no weight was changed by it. "
            f"{f'The last good checkpoint is {folder}. ' if folder else ''}Look at these images, lower `learning_rate` or "
            "raise `beta`; in fp16, try bf16."
        )
