# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import torch
from accelerate import Accelerator


class DeviceMeans:
    """
    Means of metrics over pairs. Sums stay on the device until they are read, so that a training step never waits for
    the device; the mean is exact whatever the sizes of batches and the number of processes.
    """

    def __init__(self):
        self._sums: dict[str, torch.Tensor] = {}  # name -> (sum, count)

    def add(self, name: str, value_B: torch.Tensor, counts_B: torch.Tensor):
        """
        Args:
            name (`str`):
                Name of the metric; every process must add the same names.
            value_B (`torch.Tensor` of shape `(B,)`):
                Value of each pair.
            counts_B (`torch.Tensor` of shape `(B,)`):
                1 for a pair that counts, else 0.
        """
        value_B, counts_B = value_B.detach().float(), counts_B.float()
        # not `value * counts`: a pair that does not count must not bring in a NaN
        total = torch.stack([torch.where(counts_B > 0, value_B, 0).sum(), counts_B.sum()])
        self._sums[name] = self._sums[name] + total if name in self._sums else total

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Reads the means over all processes and starts anew. Metrics to which no pair counted are left out."""
        if not self._sums:
            return {}
        totals = accelerator.reduce(torch.stack(list(self._sums.values())), reduction="sum").tolist()
        means = {name: total / count for name, (total, count) in zip(self._sums, totals, strict=True) if count}
        self._sums.clear()
        return means
