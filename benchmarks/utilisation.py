# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
How much of a device's peak a step reaches. What counts is the model's operations: the forward passes of policy and reference, and
the gradients with respect to inputs, attention included; what is computed a second time is not counted.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trl_focus import DiffusionDPOTrainer

from .clock import now
from .cost_model.cluster import H100
from .cost_model.trace import Trace, trace


# Of bf16, dense, by the makers' data sheets
PEAKS = {"H100 80GB HBM3": H100.flops, "H100 PCIe": 756e12, "H200": H100.flops, "A100": 312e12}


def peak_flops(now: Callable[[], float] = now, repeats: int = 3) -> float:
    """Operations per second of the device: its maker's number, or those of the fastest of some products of large matrices."""
    if torch.cuda.is_available():
        for name, flops in PEAKS.items():
            if name in torch.cuda.get_device_name() and "NVL" not in torch.cuda.get_device_name():
                return flops
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    side = 8192 if device == "cuda" else 2048  # long beside the launch
    one, other = torch.randn(2, side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        start = now()
        one @ other
        seconds.append(now() - start)
    return 2 * side**3 / min(seconds)


def trace_step(trainer: DiffusionDPOTrainer, batch: dict) -> Trace:
    """
    What the policy's forward pass of a batch does. The trace leaves checkpointing off: where a step needs it to fit, tensors
    are without values, and the trainer must have taken a step before, so that no cache of a model is filled with them.
    """
    x_BCHW, prompt, references = trainer._encode(batch)
    inputs = trainer._noise(x_BCHW, batch["seed"]), prompt, references
    policy = trainer.accelerator.unwrap_model(trainer.model)
    checkpointing = trainer.args.gradient_checkpointing
    with FakeTensorMode(allow_non_fake_inputs=True) if checkpointing else nullcontext():
        seen = trace(policy, {}, call=lambda: trainer._predict(policy, *inputs))
    if checkpointing:
        policy.activation_checkpointing_enable()
    return seen


def counted_flops(trainer: DiffusionDPOTrainer, batch: dict) -> int:
    """Operations of a step, as torch counts them: on the CPU with attention made of products, which its counter knows alone."""
    products = nullcontext() if torch.cuda.is_available() else sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, products:
        trainer.compute_loss(trainer.model, batch).backward()
    trainer.optimizer.zero_grad()
    return counter.get_total_flops()
