# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What bounds a step on one card and on many: arithmetic, memory, or the network."""

from dataclasses import dataclass

from .memory import Sizes, weight_bytes
from .trace import Trace


@dataclass(frozen=True)
class Card:
    """
    A card, by its maker's data sheet.

    Attributes:
        flops (`float`):
            Operations per second in bf16, dense.
        bandwidth (`float`):
            Bytes per second from its memory.
        link (`float`):
            Bytes per second, one way, to the other cards of its node.
        network (`float`):
            Bytes per second, one way, to other nodes.
        per_node (`int`):
            Cards of a node.
    """

    flops: float
    bandwidth: float
    link: float
    network: float
    per_node: int = 8


H100 = Card(
    flops=989e12, bandwidth=3.35e12, link=450e9, network=50e9
)  # NVLink 4, and 400 Gb/s of InfiniBand for each card

PCIE = 31.5e9  # bytes per second from host memory over 16 lanes of PCIe 4.0, by its specification

LAYOUTS = ("ddp", "zero2", "fsdp2", "zero3")


def sent_bytes(
    sizes: Sizes, cards: int, layout: str, storage: str = "bf16", reference_precomputed: bool = False
) -> int:
    """
    Bytes that each card sends for one update of one batch, by ring collectives: of `V` bytes, an all-gather and a
    reduce-scatter send `V (n - 1) / n`, and an all-reduce as much as both.

    Args:
        sizes ([`Sizes`]):
            Numbers of weights; LoRA and its gradients are in fp32.
        cards (`int`):
            How many take part.
        layout (`str`):
            `"ddp"` and `"zero2"` exchange LoRA's gradients alone. `"fsdp2"` and `"zero3"` also gather all weights for each
            pass: the policy's forward and backward, and the reference's forward.
        storage (`str`, *optional*, defaults to `"bf16"`):
            How weights are stored, and sent.
        reference_precomputed (`bool`, *optional*, defaults to `False`):
            Whether the reference needs no pass.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` is {layout!r}; it must be one of {', '.join(map(repr, LAYOUTS))}.")
    lora = 4 * sum(sizes.lora)
    if layout in ("ddp", "zero2"):
        volume = 2 * lora
    else:
        passes = 2 if reference_precomputed else 3
        volume = passes * (weight_bytes(sizes, storage) + lora) + lora
    return volume * (cards - 1) // cards


def moved_bytes(trace: Trace) -> int:
    """
    Bytes between a card and its memory in a forward pass, at the least: weights, inputs and outputs of every matrix product
    once, with activations in bf16.
    """
    products = sum(p.weight_bytes + 2 * p.rows * (p.inputs + p.outputs) for p in trace.products)
    attentions = sum(2 * a.heads * a.dim * 2 * (a.queries + a.keys) for a in trace.attentions)
    return products + attentions


@dataclass(frozen=True)
class Bounds:
    """Seconds of a step, at the least, by each resource. What overlaps fully takes as long as the longest of them."""

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.network)

    @property
    def by(self) -> str:
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))


def bounds(card: Card, cards: int, flops: int, passes: float, trace: Trace, sent: int) -> Bounds:
    """
    Bounds of a step.

    Args:
        flops (`int`):
            Operations of the step on each card.
        passes (`float`):
            How many times the bytes of a forward pass the step moves: forward passes count 1, and a backward pass 2.
        sent (`int`):
            Bytes that each card sends.
    """
    link = card.link if cards <= card.per_node else card.network
    return Bounds(flops / card.flops, passes * moved_bytes(trace) / card.bandwidth, sent / link)
