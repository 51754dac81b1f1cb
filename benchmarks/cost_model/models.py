# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
The models of the tables, built from their published configurations without weights. Sides are in pixels; B images, N tokens of
target and references, T tokens of the prompt.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    UNet2DConditionModel,
)
from peft import LoraConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from trl_focus.families.flux import FluxKontext
from trl_focus.families.flux2 import Flux2
from trl_focus.families.qwen_image import QwenImage
from trl_focus.families.stable_diffusion import StableDiffusionXL
from trl_focus.trainer.policy import DiffusionPeftModel

from .live import live_bytes
from .trace import Trace, like_cuda, trace


@dataclass(frozen=True)
class Model:
    """
    A model of the tables.

    Attributes:
        denoiser, vae (`Callable`):
            Build them.
        text_encoders (`dict[Callable, int]`):
            Build the text encoders; with how many tokens each reads.
        inputs (`Callable`):
            Takes B, the sides of target and references in cells, and T, and gives what the denoiser is called with.
        lora_target_modules (`list[str]`):
            Those of its family.
        cell (`int`):
            Side of a cell of the token grid in pixels.
        channels (`int`):
            Channels of a cell.
        prompt (`tuple[int, int]`):
            Tokens of a prompt's embedding, and features of each; references that a text encoder sees are among the tokens.
        pooled (`int`):
            Features of its pooled embedding.
        positions (`int`):
            Numbers of a prompt token's position, where these go with the embedding.
        references (`bool`):
            Whether it takes references.
    """

    denoiser: Callable[[], torch.nn.Module]
    vae: Callable[[], torch.nn.Module]
    text_encoders: dict[Callable[[], torch.nn.Module], int]
    inputs: Callable[[int, list[int], int], dict[str, Any]]
    lora_target_modules: list[str]
    cell: int
    channels: int
    prompt: tuple[int, int]
    pooled: int = 0
    positions: int = 0
    references: bool = True

    def tokens(self, sides: list[int]) -> int:
        """Tokens of images of these sides in pixels."""
        return sum((side // self.cell) ** 2 for side in sides)


# ---- Inputs ----


def _count(sides: list[int]) -> int:
    return sum(side**2 for side in sides)


def flux2_inputs(batch: int, sides: list[int], text: int, features: int, guidance: bool) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(batch, _count(sides), 128),
        "timestep": torch.empty(batch),
        "guidance": torch.empty(batch) if guidance else None,
        "encoder_hidden_states": torch.empty(batch, text, features),
        "txt_ids": torch.empty(batch, text, 4),
        "img_ids": torch.empty(batch, _count(sides), 4),
    }


def flux_inputs(batch: int, sides: list[int], text: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(batch, _count(sides), 64),
        "timestep": torch.empty(batch),
        "guidance": torch.empty(batch),
        "encoder_hidden_states": torch.empty(batch, text, 4096),
        "pooled_projections": torch.empty(batch, 768),
        "txt_ids": torch.empty(text, 3),
        "img_ids": torch.empty(_count(sides), 3),
    }


def qwen_image_inputs(batch: int, sides: list[int], text: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(batch, _count(sides), 64),
        "timestep": torch.empty(batch),
        "encoder_hidden_states": torch.empty(batch, text, 3584),
        "encoder_hidden_states_mask": None,
        "img_shapes": [[(1, side, side) for side in sides]] * batch,
    }


def sdxl_inputs(batch: int, sides: list[int], text: int) -> dict[str, Any]:
    (side,) = sides
    return {
        "sample": torch.empty(batch, 4, side, side),
        "timestep": torch.empty(batch),
        "encoder_hidden_states": torch.empty(batch, text, 2048),
        "added_cond_kwargs": {"text_embeds": torch.empty(batch, 1280), "time_ids": torch.empty(batch, 6)},
    }


# ---- Parts ----


def klein(layers: int, single_layers: int, heads: int, features: int) -> Callable[[], torch.nn.Module]:
    return lambda: Flux2Transformer2DModel(
        num_layers=layers,
        num_single_layers=single_layers,
        num_attention_heads=heads,
        joint_attention_dim=features,
        guidance_embeds=False,
    )


def sdxl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def kl_vae(latent_channels: int) -> Callable[[], torch.nn.Module]:
    return lambda: AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=latent_channels,
    )


def clip(width: int, layers: int, heads: int) -> Callable[[], torch.nn.Module]:
    return lambda: CLIPTextModel(
        CLIPTextConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads
        )
    )


def t5_xxl() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    )


def _grouped(config: type, width: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int):
    return config(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=128,
        vocab_size=vocabulary,
    )


def qwen3_4b() -> Qwen3Model:
    return Qwen3Model(_grouped(Qwen3Config, 2560, 9728, 36, 32, 8, 151936))


def qwen3_8b() -> Qwen3Model:
    return Qwen3Model(_grouped(Qwen3Config, 4096, 12288, 36, 32, 8, 151936))


def mistral_24b() -> MistralModel:
    return MistralModel(_grouped(MistralConfig, 5120, 32768, 40, 32, 8, 131072))


def qwen2_7b() -> Qwen2Model:
    """The language model of Qwen2.5-VL; its vision tower (0.7 billion parameters) is left out."""
    return Qwen2Model(_grouped(Qwen2Config, 3584, 18944, 28, 28, 4, 152064))


CLIP_L, CLIP_G = clip(768, 12, 12), clip(1280, 32, 20)


def _flux2(denoiser: Callable, text_encoder: Callable, features: int, guidance: bool = False) -> Model:
    return Model(
        denoiser=denoiser,
        vae=AutoencoderKLFlux2,
        text_encoders={text_encoder: 512},
        inputs=lambda batch, sides, text: flux2_inputs(batch, sides, text, features, guidance),
        lora_target_modules=Flux2.lora_target_modules,
        cell=16,
        channels=128,
        prompt=(512, features),
        positions=4,
    )


# Defaults of diffusers' classes are the configurations of FLUX.1, FLUX.2 dev, Qwen-Image and their VAEs
MODELS = {
    "SDXL": Model(
        denoiser=sdxl_unet,
        vae=kl_vae(4),
        text_encoders={CLIP_L: 77, CLIP_G: 77},
        inputs=sdxl_inputs,
        lora_target_modules=StableDiffusionXL.lora_target_modules,
        cell=8,
        channels=4,
        prompt=(77, 2048),
        pooled=1280,
        references=False,
    ),
    "FLUX.2 klein 4B": _flux2(klein(5, 20, 24, 7680), qwen3_4b, 7680),
    "FLUX.2 klein 9B": _flux2(klein(8, 24, 32, 12288), qwen3_8b, 12288),
    "FLUX.1 Kontext": Model(
        denoiser=lambda: FluxTransformer2DModel(guidance_embeds=True),
        vae=kl_vae(16),
        text_encoders={CLIP_L: 77, t5_xxl: 512},
        inputs=flux_inputs,
        lora_target_modules=FluxKontext.lora_target_modules,
        cell=16,
        channels=64,
        prompt=(512, 4096),
        pooled=768,
    ),
    "Qwen-Image-Edit": Model(
        denoiser=QwenImageTransformer2DModel,
        vae=AutoencoderKLQwenImage,
        text_encoders={qwen2_7b: 512},
        inputs=qwen_image_inputs,
        lora_target_modules=QwenImage.lora_target_modules,
        cell=16,
        channels=64,
        prompt=(512, 3584),
    ),
    "FLUX.2 dev": _flux2(Flux2Transformer2DModel, mistral_24b, 15360, guidance=True),
}


# ---- Building and tracing ----


def on_meta(build: Callable[[], torch.nn.Module], dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    """A module without memory."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return build().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


def policy_on_meta(model: Model, rank: int = 16) -> DiffusionPeftModel:
    """The denoiser with the LoRA that the trainer gives it by default, without memory."""
    lora = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=model.lora_target_modules)
    return DiffusionPeftModel(on_meta(model.denoiser), lora)


def _give_fake_tensors(module: torch.nn.Module):
    """Puts fake tensors of the CPU in the place of those on `meta`, for which attention and autocast do other things."""
    for part in module.modules():
        for own in (part._parameters, part._buffers, vars(part)):
            for name, tensor in own.items():
                if isinstance(tensor, torch.Tensor):
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    own[name] = torch.nn.Parameter(fake, tensor.requires_grad) if own is part._parameters else fake


def trace_policy(model: Model, sides: list[int], batch: int = 2, rank: int = 16) -> Trace:
    """
    What a forward pass of the policy does in bf16.

    Args:
        sides (`list[int]`):
            Of the square target and the square references, in pixels.
        batch (`int`, *optional*, defaults to `2`):
            Images; a pair has two.
        rank (`int`, *optional*, defaults to `16`):
            Of the LoRA.
    """
    with _fake_policy(model, sides, batch, rank) as (policy, inputs):
        return trace(policy, inputs, torch.bfloat16)


@contextmanager
def _fake_policy(model: Model, sides: list[int], batch: int, rank: int) -> Iterator[tuple[torch.nn.Module, dict]]:
    policy = policy_on_meta(model, rank)
    with FakeTensorMode():
        _give_fake_tensors(policy)
        yield policy, model.inputs(batch, [side // model.cell for side in sides], model.prompt[0])


def peak_of_policy(model: Model, sides: list[int], checkpointing: bool = True, batch: int = 2, rank: int = 16) -> int:
    """The most bytes of activations and gradients of a forward and backward pass of the policy in bf16, as `trace_policy`."""
    with _fake_policy(model, sides, batch, rank) as (policy, inputs), like_cuda(torch.bfloat16):
        policy.train()
        if checkpointing:
            policy.activation_checkpointing_enable()
        return live_bytes(lambda: policy(**inputs, return_dict=False)[0])[1]


def trace_vae(model: Model, side: int) -> Trace:
    """What encoding of one square image does."""
    vae = on_meta(model.vae)
    with FakeTensorMode(), torch.no_grad():
        _give_fake_tensors(vae)
        pixels = torch.empty(1, 3, side, side, dtype=torch.bfloat16)
        pixels = pixels[:, :, None] if isinstance(vae, AutoencoderKLQwenImage) else pixels
        return trace(vae, {"x": pixels}, torch.bfloat16, call=vae.encode)
