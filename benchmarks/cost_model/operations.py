# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Floating-point operations of a training step: those of matrix products and attention. The rest is a few per thousand."""

from collections.abc import Callable
from dataclasses import dataclass

from .models import Model, on_meta, trace_policy, trace_vae
from .trace import Attention, Product, Trace


def product_flops(product: Product) -> int:
    """A multiplication and an addition for each weight and each row."""
    return 2 * product.rows * product.inputs * product.outputs


def attention_flops(attention: Attention) -> int:
    """Scores, and the mean of the values by them: a product each."""
    return 4 * attention.heads * attention.queries * attention.keys * attention.dim


def forward_flops(trace: Trace, lora: bool = True) -> int:
    """Of a forward pass; without LoRA that of the reference."""
    products = sum(product_flops(product) for product in trace.products if lora or not product.trained)
    return products + sum(map(attention_flops, trace.attentions))


def backward_flops(trace: Trace, scores_again: bool = True, weights: bool = True) -> int:
    """
    Of a backward pass: a product for the gradient of each input that has one, and one for the weights of LoRA. Frozen weights
    have none, which spares a third of the step of full training.

    Args:
        trace ([`Trace`]):
            The forward pass.
        scores_again (`bool`, *optional*, defaults to `True`):
            Whether attention computes its scores again, as flash attention does.
        weights (`bool`, *optional*, defaults to `True`):
            Whether the gradients of LoRA's weights count.
    """
    flops = sum(
        product_flops(product) * (product.input_gradient + (weights and product.weight_gradient))
        for product in trace.products
    )
    for attention in trace.attentions:
        query, key, value = attention.gradients
        scores = query or key  # the gradient of the scores leads to both
        products = query + key + value + scores + (scores_again and (scores or value))
        flops += products * attention_flops(attention) // 2
    return flops


def recomputed_flops(trace: Trace) -> int:
    """What gradient checkpointing computes a second time: the forward pass of blocks, as far as their backward pass needs it."""
    products = sum(product_flops(product) for product in trace.products if product.recomputed)
    return products + sum(attention_flops(attention) for attention in trace.attentions if attention.recomputed)


def model_flops(trace: Trace, reference: bool = True) -> int:
    """
    What a step of the policy whose forward pass is traced must compute, however it does: the forward pass, the reference's if
    there is one, and the gradients with respect to inputs. Nothing counts a second time.
    """
    passes = forward_flops(trace) + reference * forward_flops(trace, lora=False)
    return passes + backward_flops(trace, scores_again=False, weights=False)


def text_encoder_flops(build: Callable, tokens: int) -> int:
    """Of reading one prompt: two for each weight and token, embeddings apart; attention to so few tokens is left out."""
    module = on_meta(build)
    embeddings = sum(
        weight.numel() for name, weight in module.named_parameters() if "embed" in name or "shared" in name
    )
    return 2 * tokens * (sum(weight.numel() for weight in module.parameters()) - embeddings)


@dataclass(frozen=True)
class Step:
    """
    Floating-point operations of a training step of one pair.

    Attributes:
        policy, reference (`int`):
            Their forward passes, of two images.
        backward (`int`):
            The backward pass.
        recomputed (`int`):
            What checkpointing adds.
        images, prompt (`int`):
            Encoding of the two images and the references, and of the prompt.
    """

    policy: int
    reference: int
    backward: int
    recomputed: int
    images: int
    prompt: int

    def total(
        self,
        checkpointing: bool = True,
        images_cached: bool = False,
        prompts_cached: bool = False,
        reference_precomputed: bool = False,
    ) -> int:
        """Of the step, where some of it was done before."""
        return (
            self.policy
            + self.backward
            + checkpointing * self.recomputed
            + (not reference_precomputed) * self.reference
            + (not images_cached) * self.images
            + (not prompts_cached) * self.prompt
        )


def step(model: Model, sides: list[int], trace: Trace | None = None) -> Step:
    """
    Operations of a step of one pair.

    Args:
        sides (`list[int]`):
            Of the square target and the square references, in pixels.
        trace ([`Trace`], *optional*):
            Of the policy, where it is there already.
    """
    trace = trace or trace_policy(model, sides)
    return Step(
        policy=forward_flops(trace),
        reference=forward_flops(trace, lora=False),
        backward=backward_flops(trace),
        recomputed=recomputed_flops(trace),
        images=sum(forward_flops(trace_vae(model, side)) for side in (sides[0], *sides)),
        prompt=sum(text_encoder_flops(build, tokens) for build, tokens in model.text_encoders.items()),
    )
