# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import math
from dataclasses import dataclass
from functools import lru_cache, partial

import PIL.Image
import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_flux2 import Flux2SingleTransformerBlock, Flux2TransformerBlock
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, format_input

from ..noise import RectifiedFlow
from .base import Family, ReferenceRule


MAX_REFERENCE_AREA = 1024 * 1024  # pixels; the pipeline shrinks larger references


def _register_blocks():
    """Tells diffusers before 0.42 where the hidden states are in what a block returns."""
    for block, index in ((Flux2TransformerBlock, 1), (Flux2SingleTransformerBlock, 0)):
        try:
            TransformerBlockRegistry.get(block)
        except ValueError:
            TransformerBlockRegistry.register(block, TransformerBlockMetadata(return_hidden_states_index=index))


@dataclass
class Flux2References(ReferenceRule):
    """Shrinks references to `max_area` pixels and cuts their sides down to multiples of `cell_size`."""

    image_processor: Flux2ImageProcessor
    cell_size: int
    max_area: int

    def size(self, width, height):
        self.image_processor.check_image_input(PIL.Image.new("1", (width, height)))
        if width * height > self.max_area:
            scale = math.sqrt(self.max_area / (width * height))
            width, height = int(width * scale), int(height * scale)
        if min(width, height) < self.cell_size:
            raise ValueError(
                f"Shrunk to {self.max_area} pixels its shorter side would have none of {self.cell_size} pixels left: raise "
                "`reference_resolution`"
            )
        return height // self.cell_size * self.cell_size, width // self.cell_size * self.cell_size

    def prepare(self, image):
        size = self.size(*image.size)
        image = self.image_processor._resize_if_exceeds_area(image, self.max_area)
        return self.image_processor.resize(image, *size, resize_mode="crop")


class Flux2(Family):
    """FLUX.2 and FLUX.2 klein: rectified flow on 2x2-packed latents, with 0 to N references behind the target's tokens."""

    # `to_qkv_mlp_proj` is the fused projection of the single-stream blocks.
    lora_target_modules = [*Family.lora_target_modules, "to_qkv_mlp_proj"]
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    reference_counts = (0, None)

    def __init__(self, pipeline, encode_prompt_kwargs=None, guidance_scale=None):
        super().__init__(pipeline, encode_prompt_kwargs, guidance_scale)
        _register_blocks()
        steps = self.call_defaults["num_inference_steps"]
        self.process = RectifiedFlow.from_scheduler(
            pipeline.scheduler, mu=partial(compute_empirical_mu, num_steps=steps)
        )
        self._position_ids = lru_cache(self._position_ids)  # one entry per layout

    @property
    def cell_size(self):
        return 2 * self.pipeline.vae_scale_factor

    @property
    def default_resolution(self):
        return self.pipeline.default_sample_size * self.pipeline.vae_scale_factor

    def reference_rule(self, resolution=None):
        max_area = min(resolution**2, MAX_REFERENCE_AREA) if resolution else MAX_REFERENCE_AREA
        return Flux2References(self.pipeline.image_processor, self.cell_size, max_area)

    @property
    def template_tokens(self):
        message = getattr(self.pipeline, "system_message", None)  # klein has none
        messages = [{"role": "user", "content": ""}] if message is None else format_input([""], message)[0]
        text = self.pipeline.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=message is None, enable_thinking=False
        )
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def encode_prompt(self, prompts, references=None):
        embeds, ids = self.pipeline.encode_prompt(prompt=prompts, **self.encode_prompt_kwargs)
        return {"prompt_embeds": embeds, "text_ids": ids}

    def encode_image(self, pixels_BCHW):
        return self.pipeline._encode_vae_image(pixels_BCHW.to(self.pipeline.vae.dtype), generator=None)

    def predict(self, denoiser, x_BCHW, timestep_B, prompt, references):
        images = [x_BCHW, *references]
        tokens = torch.cat([self.pipeline._pack_latents(image).to(x_BCHW.dtype) for image in images], dim=1)
        ids = self._position_ids(x_BCHW.device, *(tuple(image.shape[-2:]) for image in images))
        guidance_B = None
        if self.denoiser.config.guidance_embeds:
            guidance_B = torch.full_like(timestep_B, self.guidance_scale)
        prediction = denoiser(
            hidden_states=tokens,
            timestep=timestep_B,
            guidance=guidance_B,
            encoder_hidden_states=prompt["prompt_embeds"].to(x_BCHW.dtype),
            txt_ids=prompt["text_ids"],
            img_ids=ids.expand(len(tokens), -1, -1),
            return_dict=False,
        )[0]
        height, width = x_BCHW.shape[-2:]
        return prediction[:, : height * width].transpose(1, 2).unflatten(2, (height, width))

    def _position_ids(self, device, *grids):
        target, *references = (torch.empty(1, 1, *grid) for grid in grids)
        ids = [self.pipeline._prepare_latent_ids(target)]
        if references:
            ids.append(self.pipeline._prepare_image_ids(references))
        return torch.cat(ids, dim=1).to(device)
