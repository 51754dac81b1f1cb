# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""A tiny FLUX.2 [klein] pipeline with random weights, built from configurations alone: nothing is downloaded."""

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM


# One token a byte: 64 tokens hold a prompt of 62 characters. The tiny text encoder has three layers, and all are used.
ENCODE_PROMPT_KWARGS = {"max_sequence_length": 64, "text_encoder_out_layers": (1, 2, 3)}

BYTES = sorted(ByteLevel.alphabet())  # the 256 printable characters that stand for the bytes


def byte_tokenizer(chat_template: str, more: Sequence[str] = (), cls: type = Qwen2Tokenizer) -> Qwen2Tokenizer:
    """
    Build a Qwen tokenizer of bytes, without merges.

    Args:
        chat_template (`str`):
            Its chat template.
        more (`Sequence[str]`, *optional*):
            Special tokens besides Qwen's three.
        cls (`type`, *optional*, defaults to `Qwen2Tokenizer`):
            Class of the tokenizer.
    """
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    return cls(
        vocab={token: index for index, token in enumerate(BYTES + specials)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=specials,
        chat_template=chat_template,
    )


@contextmanager
def seeded(seed: int):
    """
    Make random weights from a seed and leave the caller's random state as it was.

    Only the CPU generator is used: `torch.manual_seed` would also reset the generators of all GPUs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def spread_weights(model: nn.Module) -> nn.Module:
    """
    Redraw the weights of all linear and convolution layers so that each layer keeps the scale of its input.

    PyTorch's default initialisation shrinks the signal in every layer. In a pipeline of random weights, prompts and
    references would then hardly change the image.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return model.eval()


def tiny_flux2_vae() -> AutoencoderKLFlux2:
    """
    Build a tiny FLUX.2 autoencoder: 8 pixels a latent, 4 latent channels, 16 channels a token.
    """
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
    )
    spread_weights(vae)
    # Like in a trained autoencoder, the stored statistics are those of its own latents.
    with torch.no_grad():
        images = nn.functional.interpolate(torch.rand(16, 3, 8, 8) * 2 - 1, scale_factor=8, mode="bilinear")
        latents = nn.functional.pixel_unshuffle(vae.encode(images).latent_dist.mode(), 2)  # one token, 2x2 latents
        vae.bn.running_mean.copy_(latents.mean(dim=(0, 2, 3)))
        vae.bn.running_var.copy_(latents.var(dim=(0, 2, 3)))
    return vae


def tiny_flux2_klein(seed: int = 0, hidden_size: int = 32) -> Flux2KleinPipeline:
    """
    Build a tiny FLUX.2 [klein] base pipeline with random weights.

    Pass [`ENCODE_PROMPT_KWARGS`] wherever the pipeline takes a prompt: the defaults are made for a text encoder with
    more layers.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights. The same seed gives the same pipeline, and the global random state is not touched.
        hidden_size (`int`, *optional*, defaults to `32`):
            Width of the transformer, a multiple of 16.

    Returns:
        [`~diffusers.Flux2KleinPipeline`]: The pipeline, on the CPU, in float32.
    """
    # Qwen's template is left out but for its markers: spelt in bytes it would be longer than the prompt.
    tokenizer = byte_tokenizer("{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}")
    with seeded(seed):
        text_encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                initializer_range=16**-0.5,
            )
        )
        transformer = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=hidden_size // 16,
            joint_attention_dim=3 * 16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )
        return Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=tiny_flux2_vae(),
            text_encoder=text_encoder.eval(),
            tokenizer=tokenizer,
            transformer=spread_weights(transformer),
            is_distilled=False,
        )
