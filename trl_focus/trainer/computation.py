# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""How a denoiser computes: what makes it faster, and leaves its results as they are but for rounding."""

from typing import TYPE_CHECKING

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

from .offload import blocks_of


if TYPE_CHECKING:
    from .diffusion_dpo_config import DiffusionDPOConfig


def set_computation(denoiser: torch.nn.Module, args: "DiffusionDPOConfig"):
    """
    Gives a denoiser the attention backend and the layout of weights that the arguments name. On a GPU torch's own attention
    goes without cuDNN's kernel from here on, in the whole process: a context around the forward would not cover what
    checkpointing computes again in the backward pass.

    Raises:
        ValueError: If the model can't have them, or the backend can't train here.
    """
    if args.device.type == "cuda":
        # torch prefers it on Hopper, where its gradients are NaN or noise for some inputs: seen with tiny FLUX.1 and FLUX.2 in
        # bf16; others: https://github.com/huggingface/diffusers/issues/9768. `attention_backend="_native_cudnn"` still takes it
        torch.backends.cuda.enable_cudnn_sdp(False)
    if args.offload_blocks:
        _check_offload(denoiser)  # what moves it comes when it has its LoRA
    if args.attention_backend is not None:
        _set_attention_backend(denoiser, args)
    if args.channels_last:
        if not isinstance(denoiser, UNet2DConditionModel):
            raise ValueError(
                f"`channels_last` lays out the weights of convolutions, and {type(denoiser).__name__} has none to speak of: "
                "it is for UNets. Leave it out."
            )
        denoiser.to(memory_format=torch.channels_last)


def _set_attention_backend(denoiser: torch.nn.Module, args: "DiffusionDPOConfig"):
    name = args.attention_backend
    if not any(hasattr(getattr(part, "processor", None), "_attention_backend") for part in denoiser.modules()):
        raise ValueError(
            f"`attention_backend` is {name!r}, and {type(denoiser).__name__} always computes attention by torch's own "
            "`scaled_dot_product_attention`. Leave it out."
        )
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else denoiser.dtype
    try:
        # `set_attention_backend` alone would also set it for all other models of the process, and for good
        with attention_backend(name):
            # Some have no kernel for this device or dtype, and some no backward pass, and diffusers asks only for packages
            probe_BSHD = torch.randn(1, 128, 2, 64, device=args.device, dtype=dtype, requires_grad=True)
            dispatch_attention_fn(probe_BSHD, probe_BSHD, probe_BSHD).sum().backward()
            denoiser.set_attention_backend(name)
    except Exception as error:  # each kernel fails in its own way
        raise ValueError(
            f"`attention_backend` is {name!r}, which can't train on {args.device.type} in {dtype}: {error} Choose another, or "
            "leave it out for torch's own."
        ) from error


def _check_offload(denoiser: torch.nn.Module):
    blocks = blocks_of(denoiser)
    if not blocks:
        raise ValueError(
            f"`offload_blocks` is for denoisers whose repeated blocks diffusers names, and it names none of "
            f"{type(denoiser).__name__}'s. Leave it out."
        )
    for weight in (weight for block in blocks for weight in block.parameters()):
        if type(weight.data) is not torch.Tensor or not weight.is_floating_point():
            raise ValueError(
                "`offload_blocks` is for weights as they are, and the denoiser's are quantized. Leave out one of both: "
                "quantized weights take a quarter or half as much, and stay on the device."
            )
