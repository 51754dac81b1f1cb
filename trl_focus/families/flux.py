# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from diffusers import FluxKontextPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux import pipeline_flux_kontext

from ..noise import RectifiedFlow
from .appended import as_tokens, sample_appended
from .base import Family, ReferenceRule
from .flux2 import Flux2
from .timestep import exact_timestep


UNO_RESOLUTION = 512  # side of the references that UNO was trained with


@dataclass
class FluxReferences(ReferenceRule):
    """Takes the nearest aspect ratio of `preferred` sizes (width, height) if there are some, at most `max_area` pixels, and
    sides that are multiples of `cell_size`."""

    image_processor: VaeImageProcessor
    cell_size: int
    max_area: float
    preferred: Sequence[tuple[int, int]] = ()

    def size(self, width, height):
        width, height = (side // self.cell_size * self.cell_size for side in (width, height))
        if self.preferred and min(width, height):
            _, width, height = min((abs(width / height - w / h), w, h) for w, h in self.preferred)
        scale = min(1.0, math.sqrt(self.max_area / max(1, width * height)))
        height, width = (int(side * scale) // self.cell_size * self.cell_size for side in (height, width))
        if min(width, height) == 0:
            raise ValueError(
                f"A side of it would have fewer than {self.cell_size} pixels: give a larger one, or raise `reference_resolution`"
            )
        return height, width

    def prepare(self, image):
        return self.image_processor.resize(image, *self.size(*image.size))


class FluxKontext(Family):
    """
    FLUX.1 Kontext: rectified flow on 2x2-packed latents. Its pipeline takes one reference, whose tokens stand behind the
    target's with 1 as their first position; further references are counted on.
    """

    # those of diffusers' training scripts: attention and MLPs of both streams, and of the single-stream blocks
    lora_target_modules = [
        *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
        *(f"{stream}.{name}" for stream in ("ff", "ff_context") for name in ("net.0.proj", "net.2")),
        "proj_mlp",
    ]
    reference_counts = (0, None)
    block_lists = Flux2.block_lists
    sampled_by_helper = True

    def __init__(self, pipeline, encode_prompt_kwargs=None, guidance_scale=None):
        super().__init__(pipeline, encode_prompt_kwargs, guidance_scale)
        self.process = RectifiedFlow.from_scheduler(pipeline.scheduler)
        self.position_ids = lru_cache(self.position_ids)  # one entry per layout

    # as in FLUX.2
    cell_size, default_resolution = Flux2.cell_size, Flux2.default_resolution

    def reference_rule(self, resolution=None):
        max_area = resolution**2 if resolution else math.inf
        preferred = pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS
        return FluxReferences(self.pipeline.image_processor, self.cell_size, max_area, preferred)

    def encode_prompt(self, prompts, references=None):
        embeds, pooled, _ = self.pipeline.encode_prompt(prompts, **self.encode_prompt_kwargs)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def encode_image(self, pixels_BCHW):
        pixels_BCHW = pixels_BCHW.to(self.pipeline.vae.dtype)
        # FLUX.1 has the same autoencoder, and no method for it
        latents = FluxKontextPipeline._encode_vae_image(self.pipeline, pixels_BCHW, generator=None)
        grid = tuple(side // 2 for side in latents.shape[-2:])
        return self.pipeline._pack_latents(latents, *latents.shape).transpose(1, 2).unflatten(2, grid)

    def predict(self, denoiser, x_BCHW, timestep_B, prompt, references):
        images = [x_BCHW, *references]
        embeds = prompt["prompt_embeds"].to(x_BCHW.dtype)
        guidance = []
        if self.denoiser.config.guidance_embeds:
            guidance = [torch.full_like(timestep_B, self.guidance_scale)]
        with exact_timestep(denoiser, *(1000 * told_B for told_B in (timestep_B, *guidance))):
            prediction = denoiser(
                hidden_states=torch.cat([as_tokens(image).to(x_BCHW.dtype) for image in images], dim=1),
                timestep=timestep_B,
                guidance=guidance[0] if guidance else None,
                pooled_projections=prompt["pooled_prompt_embeds"].to(x_BCHW.dtype),
                encoder_hidden_states=embeds,
                txt_ids=embeds.new_zeros(embeds.shape[1], 3),
                img_ids=self.position_ids(x_BCHW.device, *(tuple(image.shape[-2:]) for image in images)),
                return_dict=False,
            )[0]
        height, width = x_BCHW.shape[-2:]
        return prediction[:, : height * width].transpose(1, 2).unflatten(2, (height, width))

    def position_ids(self, device, *grids):
        ids = [self.pipeline._prepare_latent_image_ids(1, *grid, device, torch.float32) for grid in grids]
        origins = self._origins(grids)
        return torch.cat([ids_N3 + ids_N3.new_tensor(at) for ids_N3, at in zip(ids, origins, strict=False)])

    def _origins(self, grids):
        """Position of the first token of the target and of each reference."""
        return [(number, 0, 0) for number in range(len(grids))]

    def sample(self, prompt, references, reference_resolution=None, **kwargs):
        if "max_area" in inspect.signature(self.pipeline.__call__).parameters and {"height", "width"} <= kwargs.keys():
            kwargs.setdefault("max_area", kwargs["height"] * kwargs["width"])  # else Kontext draws a megapixel
        return sample_appended(self, prompt, references, reference_resolution, **kwargs)


class Flux(FluxKontext):
    """
    FLUX.1, whose pipeline takes no references. Placed `"diagonal"` they stand as in UNO
    (https://huggingface.co/papers/2504.02160): each begins where the image before it ends, in rows and columns.
    """

    reference_counts = (0, 0)

    def place_references(self, positions):
        self.reference_positions = positions
        self.reference_counts = (0, None)

    def reference_rule(self, resolution=None):
        if self.reference_positions is None:
            return None
        return FluxReferences(self.pipeline.image_processor, self.cell_size, (resolution or UNO_RESOLUTION) ** 2)

    def _origins(self, grids):
        return accumulate(grids, lambda at, grid: (0, at[1] + grid[0], at[2] + grid[1]), initial=(0, 0, 0))
