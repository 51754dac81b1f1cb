# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Pipelines with random weights, of several families, at their own size or a part of it: the parts have the published
configurations, with fewer heads, channels and layers. Tokenizers are those of the tests, a token a byte.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.fixtures.flux import KONTEXT_SIZES
from tests.fixtures.pipelines import TINY


@dataclass(frozen=True)
class Size:
    """
    How large a model is, and what it sees.

    Attributes:
        width, depth (`float`):
            Share of the real model's heads and channels, and of its layers.
        resolution, reference (`int`):
            Side of the images and of the references, in pixels.
        prompt (`int`):
            Tokens of the prompt, where prompts are padded.
        checkpointing (`bool`):
            Whether a step would not fit without gradient checkpointing.
    """

    width: float
    depth: float
    resolution: int
    reference: int
    prompt: int
    checkpointing: bool = False

    def wide(self, count: int) -> int:
        return max(1, round(self.width * count))

    def deep(self, count: int) -> int:
        return max(1, round(self.depth * count))


SIZES = {
    "tiny": Size(1 / 12, 1 / 20, resolution=64, reference=64, prompt=64),
    "small": Size(1 / 5, 1 / 12, resolution=256, reference=128, prompt=128),
    "medium": Size(1 / 2, 1 / 4, resolution=512, reference=256, prompt=256),
    "real": Size(1, 1, resolution=1024, reference=1024, prompt=512, checkpointing=True),
}


# ---- Parts: settings that differ from those of the classes, or of the tests' text encoders ----


def _clip(heads: int, layers: int) -> dict[str, Any]:
    width = 64 * heads
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "projection_dim": width,
    }


def _t5(size: Size) -> dict[str, Any]:
    heads = size.wide(64)
    return {
        "d_model": 64 * heads,
        "d_kv": 64,
        "d_ff": 160 * heads,
        "num_heads": heads,
        "num_layers": size.deep(24),
    }


def _vae_channels(size: Size) -> dict[str, Any]:
    return {"block_out_channels": [32 * size.wide(count) for count in (4, 8, 16, 16)]}


def _kl_vae(size: Size, **settings) -> dict[str, Any]:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        **_vae_channels(size),
        **settings,
    }


# ---- Families ----


def _flux2_klein(size: Size) -> dict[str, dict]:
    groups = size.wide(8)
    return {
        "transformer": {
            "num_layers": size.deep(5),
            "num_single_layers": size.deep(20),
            "num_attention_heads": size.wide(24),
            "joint_attention_dim": 3 * 320 * groups,
            "guidance_embeds": False,
        },
        "vae": _vae_channels(size),
        "text_encoder": {
            "hidden_size": 320 * groups,
            "intermediate_size": 1216 * groups,
            "num_hidden_layers": size.deep(36),
            "num_attention_heads": 4 * groups,
            "num_key_value_heads": groups,
            "head_dim": 128,
        },
    }


def _kontext(size: Size) -> dict[str, dict]:
    clip, t5 = _clip(size.wide(12), size.deep(12)), _t5(size)
    return {
        "transformer": {
            "num_layers": size.deep(19),
            "num_single_layers": size.deep(38),
            "num_attention_heads": size.wide(24),
            "joint_attention_dim": t5["d_model"],
            "pooled_projection_dim": clip["hidden_size"],
            "guidance_embeds": True,
        },
        "vae": _kl_vae(size, latent_channels=16, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": clip,
        "text_encoder_2": t5,
    }


def _qwen_image_edit_plus(size: Size) -> dict[str, dict]:
    groups, eyes = size.wide(4), size.wide(16)
    return {
        "transformer": {
            "num_layers": size.deep(60),
            "num_attention_heads": size.wide(24),
            "joint_attention_dim": 896 * groups,
            "zero_cond_t": True,
        },
        "vae": {"base_dim": 8 * size.wide(12)},
        "text_encoder": {
            "text_config": {
                "hidden_size": 896 * groups,
                "intermediate_size": 4736 * groups,
                "num_hidden_layers": size.deep(28),
                "num_attention_heads": 7 * groups,
                "num_key_value_heads": groups,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            },
            "vision_config": {
                "depth": size.deep(32),
                "hidden_size": 80 * eyes,
                "intermediate_size": 3420 * eyes // 16,
                "num_heads": eyes,
                "out_hidden_size": 896 * groups,
                "fullatt_block_indexes": sorted({size.deep(count) - 1 for count in (8, 16, 24, 32)}),
            },
        },
    }


def _sd3(size: Size) -> dict[str, dict]:
    """Stable Diffusion 3.5 medium."""
    first, second, t5 = _clip(size.wide(12), size.deep(12)), _clip(size.wide(20), size.deep(32)), _t5(size)
    heads = size.wide(24)
    return {
        "transformer": {
            "num_layers": size.deep(24),
            "num_attention_heads": heads,
            "caption_projection_dim": 64 * heads,
            "joint_attention_dim": t5["d_model"],
            "pooled_projection_dim": first["projection_dim"] + second["projection_dim"],
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(size.deep(13))),
            "qk_norm": "rms_norm",
        },
        "vae": _kl_vae(size, latent_channels=16, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": first,
        "text_encoder_2": second,
        "text_encoder_3": t5,
    }


def _sdxl(size: Size) -> dict[str, dict]:
    first, second = _clip(size.wide(12), size.deep(12)), _clip(size.wide(20), size.deep(32))
    width = size.wide(10)
    return {
        "unet": {
            "sample_size": 128,
            "block_out_channels": (32 * width, 64 * width, 128 * width),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, size.deep(2), size.deep(10)),
            "attention_head_dim": (max(1, width // 2), width, 2 * width),  # numbers of heads, whatever the name
            "cross_attention_dim": first["hidden_size"] + second["hidden_size"],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 6 * 256 + second["projection_dim"],
        },
        "vae": _kl_vae(size, latent_channels=4, scaling_factor=0.13025),
        "text_encoder": first,
        "text_encoder_2": second,
    }


FAMILIES: dict[str, Callable[[Size], dict[str, dict]]] = {
    "flux2_klein": _flux2_klein,
    "kontext": _kontext,
    "qwen_image_edit_plus": _qwen_image_edit_plus,
    "sd3": _sd3,
    "sdxl": _sdxl,
}


def build(family: str, size: Size) -> DiffusionPipeline:
    """The pipeline of a family, on the CPU in fp32, or on a GPU in bf16 where there is one."""
    pipeline = TINY[family].build()
    default = torch.get_default_dtype()
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            parts = {
                name: _part(getattr(pipeline, name), settings) for name, settings in FAMILIES[family](size).items()
            }
    finally:
        torch.set_default_dtype(default)
    pipeline.register_modules(**parts)
    if hasattr(pipeline, "processor"):
        pipeline.processor.image_processor = Qwen2VLImageProcessorPil()
    return pipeline


def _part(tiny: torch.nn.Module, settings: dict[str, Any]) -> torch.nn.Module:
    """A part of a pipeline of the class of a tiny one. Text encoders know special tokens by the tiny one's configuration."""
    cls = type(tiny)
    if not hasattr(tiny.config, "to_dict"):
        return cls(**settings)
    return cls(type(tiny.config)(**_changed(tiny.config.to_dict(), settings))).eval()


def _changed(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    nested = {name: _changed(config[name], value) for name, value in settings.items() if name.endswith("_config")}
    config.pop("layer_types", None)  # one for each layer
    return {**config, **settings, **nested}


def prompt_kwargs(family: str, size: Size) -> dict[str, Any]:
    """What `encode_prompt` takes besides the prompt."""
    kwargs = dict(TINY[family].prompt_kwargs)
    if "max_sequence_length" in kwargs:
        kwargs["max_sequence_length"] = size.prompt
    if "text_encoder_out_layers" in kwargs:
        kwargs["text_encoder_out_layers"] = tuple(map(size.deep, (9, 18, 27)))
    return kwargs


@contextmanager
def reference_sizes(size: Size) -> Iterator[None]:
    """Within it diffusers has the sizes of references that the tests' fixtures shrink; the prompt's encoder sees 3/8 of them."""
    with (
        patch.object(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", KONTEXT_SIZES),
        patch.object(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 1024 * 1024),
        patch.object(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", (size.reference * 3 // 8) ** 2),
    ):
        yield
