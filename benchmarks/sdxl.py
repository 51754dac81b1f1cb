# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Stable Diffusion XL with random weights, at its own width or a part of it."""

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode


def sdxl(width: int = 64) -> StableDiffusionXLPipeline:
    """
    A pipeline with SDXL's blocks, layers and parts.

    Args:
        width (`int`, *optional*, defaults to `64`):
            Channels of the UNet's first level, a multiple of 64; SDXL has 320. The other parts shrink with it.
    """
    torch.manual_seed(0)
    share = width / 320
    tokenizers = [_tokenizer(), _tokenizer()]

    def text_config(tokenizer, size: int, layers: int, act: str) -> CLIPTextConfig:
        size = round(size * share / 64) * 64
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=size,
            intermediate_size=4 * size,
            num_attention_heads=size // 64,
            num_hidden_layers=layers,
            projection_dim=size,
            hidden_act=act,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    first, second = (
        text_config(tokenizer, *shape)
        for tokenizer, shape in zip(tokenizers, [(768, 12, "quick_gelu"), (1280, 32, "gelu")], strict=True)
    )
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=[round(channels * share / 8) * 8 for channels in (128, 256, 512, 512)],
            layers_per_block=2,
            norm_num_groups=8,
            latent_channels=4,
            scaling_factor=0.13025,
        ).eval(),
        text_encoder=CLIPTextModel(first).eval(),
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(width, 2 * width, 4 * width),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(width // 64, width // 32, width // 16),
            cross_attention_dim=first.hidden_size + second.hidden_size,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=6 * 256 + second.projection_dim,
        ),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def _tokenizer() -> CLIPTokenizer:
    letters = [*bytes_to_unicode().values()]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
