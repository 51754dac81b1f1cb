# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Bytes that a training step holds on a card, encoders apart: with prompts and images encoded before, they are not there."""

from dataclasses import dataclass

import torch

from trl_focus.trainer.offload import blocks_of

from .trace import Trace


BLOCK_4BIT = 64  # weights that share a scale in bitsandbytes
BLOCK_8BIT, MIN_8BIT = 256, 4096  # states of its 8-bit optimizers that share a scale, and the fewest that are in 8 bit


@dataclass(frozen=True)
class Sizes:
    """
    Numbers of weights of a policy.

    Attributes:
        linear (`list[tuple[int, int]]`):
            Rows and columns of the frozen linear layers, which are what gets quantized.
        other (`int`):
            Other frozen weights: convolutions, norms, biases.
        lora (`list[int]`):
            Those of each tensor of the LoRA.
    """

    linear: list[tuple[int, int]]
    other: int
    lora: list[int]

    @property
    def frozen(self) -> int:
        return sum(rows * columns for rows, columns in self.linear) + self.other


def sizes(policy: torch.nn.Module) -> Sizes:
    """Counts the weights of a policy, on `meta` or not."""
    linear = [
        tuple(module.weight.shape)
        for module in policy.modules()
        if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad
    ]
    frozen = sum(weight.numel() for weight in policy.parameters() if not weight.requires_grad)
    return Sizes(
        linear,
        frozen - sum(rows * columns for rows, columns in linear),
        [weight.numel() for weight in policy.parameters() if weight.requires_grad],
    )


def weight_bytes(sizes: Sizes, storage: str = "bf16") -> int:
    """
    Bytes of the frozen weights.

    Args:
        sizes ([`Sizes`]):
            Numbers of weights.
        storage (`str`, *optional*, defaults to `"bf16"`):
            `"bf16"`; `"int8"` (LLM.int8(): a byte, and a scale in fp32 for each row) or `"nf4"` (half a byte, and a scale in
            fp32 for each 64) for linear layers, with the others in bf16.
    """
    if storage == "bf16":
        return 2 * sizes.frozen
    if storage == "int8":
        linear = sum(rows * columns + 4 * rows for rows, columns in sizes.linear)
    elif storage == "nf4":
        linear = sum(-(-rows * columns // 2) + 4 * -(-rows * columns // BLOCK_4BIT) for rows, columns in sizes.linear)
    else:
        raise ValueError(f"`storage` is {storage!r}; it must be 'bf16', 'int8' or 'nf4'.")
    return linear + 2 * sizes.other


def optimizer_bytes(sizes: Sizes, eight_bit: bool = False) -> int:
    """Bytes of AdamW's two states of each LoRA weight: in fp32, or by bitsandbytes in 8 bit where tensors are not small."""
    if not eight_bit:
        return 8 * sum(sizes.lora)
    return sum(2 * (count + 4 * -(-count // BLOCK_8BIT)) if count >= MIN_8BIT else 8 * count for count in sizes.lora)


def kept_bytes(trace: Trace, checkpointing: bool = True) -> int:
    """Bytes of activations that a forward pass leaves for the backward pass."""
    if not checkpointing:
        return sum(trace.kept.values())
    return sum(trace.block_inputs) + trace.kept[None]


def activation_bytes(trace: Trace, checkpointing: bool = True) -> int:
    """
    The most bytes of activations at a time. With checkpointing, when a block's backward pass begins: the inputs of the blocks up
    to it, and what it keeps itself. Gradients that pass from block to block are left out: as much as the input of a block or two.
    """
    if not checkpointing:
        return kept_bytes(trace, checkpointing=False)
    peaks, inputs = [], trace.kept[None]
    for block, block_inputs in enumerate(trace.block_inputs):
        inputs += block_inputs
        peaks.append(inputs + trace.kept[block])
    return max(peaks)


@dataclass(frozen=True)
class Memory:
    """
    Bytes on a card, by what takes them.

    Attributes:
        weights (`int`):
            Frozen weights.
        lora (`int`):
            LoRA in fp32, its gradients, and the optimizer's states.
        activations (`int`):
            The most at a time.
        buffers (`int`):
            The largest layer in bf16, where quantized weights are unpacked for their product.
    """

    weights: int
    lora: int
    activations: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.lora + self.activations + self.buffers


def memory(
    sizes: Sizes, trace: Trace, storage: str = "bf16", checkpointing: bool = True, eight_bit_optimizer: bool = False
) -> Memory:
    """Bytes of a step on one card that shares nothing with others."""
    return Memory(
        weights=weight_bytes(sizes, storage),
        lora=8 * sum(sizes.lora) + optimizer_bytes(sizes, eight_bit_optimizer),
        activations=activation_bytes(trace, checkpointing),
        buffers=0 if storage == "bf16" else 2 * max(rows * columns for rows, columns in sizes.linear),
    )


@dataclass(frozen=True)
class Offload:
    """
    Bytes of the frozen weights in bf16 with `offload_blocks`.

    Attributes:
        card (`int`):
            On the card: weights outside of blocks, and the largest block.
        sent (`int`):
            All blocks, which is what a pass brings to the card.
        host (`int`):
            Blocks in pinned memory, where torch takes a power of two of bytes for each tensor.
    """

    card: int
    sent: int
    host: int


def offload(policy: torch.nn.Module) -> Offload:
    """Bytes of a policy's frozen weights where its blocks rest in host memory; `policy` is on `meta` or not."""
    blocks = [
        [2 * w.numel() for w in b.parameters() if not w.requires_grad] for b in blocks_of(policy.get_base_model())
    ]
    sent = sum(map(sum, blocks))
    return Offload(
        card=2 * sizes(policy).frozen - sent + max(map(sum, blocks)),
        sent=sent,
        host=sum(1 << (size - 1).bit_length() for block in blocks for size in block),
    )
