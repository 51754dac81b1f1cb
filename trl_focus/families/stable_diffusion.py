# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import copy
from functools import lru_cache

import torch

from ..noise import DDPM
from .base import Family


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x: a UNet that predicts epsilon or v. Text alone conditions it."""

    denoiser_name = "unet"
    prediction_type = "epsilon or v"

    def __init__(self, pipeline, encode_prompt_kwargs=None, guidance_scale=None):
        super().__init__(pipeline, encode_prompt_kwargs, guidance_scale)
        if pipeline.unet.config.time_cond_proj_dim is not None:
            raise ValueError(
                "This UNet embeds the guidance scale: it was distilled for few steps (LCM), and preference tuning would "
                "undo that. Train the UNet it was distilled from."
            )
        self.process = DDPM.from_scheduler(pipeline.scheduler)

        config = pipeline.scheduler.config
        # Others are sampled from less than the last timestep, or predict v
        self.looks_distilled = (
            config.get("timestep_spacing") == "trailing" and self.process.prediction_type == "epsilon"
        )

    def sampled_in(self, steps):
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        scheduler.set_timesteps(steps)
        self.process.timesteps_N = scheduler.timesteps.long().unique()

    @property
    def default_resolution(self):
        return self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor

    def encode_prompt(self, prompts, references=None):
        embeds, _ = self.pipeline.encode_prompt(
            prompts, self.pipeline.device, 1, do_classifier_free_guidance=False, **self.encode_prompt_kwargs
        )
        return {"prompt_embeds": embeds}

    def encode_image(self, pixels_BCHW):
        vae = self.pipeline.vae
        overflows = vae.dtype == torch.float16 and vae.config.force_upcast
        if overflows:  # back again below: the pipeline samples in fp16
            vae.to(torch.float32)
        x_BCHW = vae.encode(pixels_BCHW.to(vae.dtype)).latent_dist.mode()
        if overflows:
            vae.to(torch.float16)
        if (mean := vae.config.latents_mean) is not None and (std := vae.config.latents_std) is not None:
            mean, std = (torch.tensor(value).to(x_BCHW)[:, None, None] for value in (mean, std))
            return (x_BCHW - mean) * vae.config.scaling_factor / std
        return x_BCHW * vae.config.scaling_factor

    def predict(self, denoiser, x_BCHW, timestep_B, prompt, references):
        return denoiser(
            x_BCHW,
            timestep_B,
            encoder_hidden_states=prompt["prompt_embeds"].to(x_BCHW.dtype),
            added_cond_kwargs=self.added_conditions(x_BCHW, prompt),
            return_dict=False,
        )[0]

    def added_conditions(self, x_BCHW, prompt):
        return None


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL: adds a pooled prompt and the image's size."""

    def __init__(self, pipeline, encode_prompt_kwargs=None, guidance_scale=None):
        super().__init__(pipeline, encode_prompt_kwargs, guidance_scale)
        self._time_ids = lru_cache(self._time_ids)  # one entry per layout

    @property
    def default_resolution(self):
        return self.pipeline.default_sample_size * self.pipeline.vae_scale_factor

    def encode_prompt(self, prompts, references=None):
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.pipeline.device, do_classifier_free_guidance=False, **self.encode_prompt_kwargs
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def added_conditions(self, x_BCHW, prompt):
        pooled = prompt["pooled_prompt_embeds"].to(x_BCHW.dtype)
        time_ids = self._time_ids(tuple(x_BCHW.shape[-2:]), pooled.shape[-1], x_BCHW.dtype, x_BCHW.device)
        return {"text_embeds": pooled, "time_ids": time_ids.expand(len(x_BCHW), -1)}

    def _time_ids(self, grid, pooled_size, dtype, device):
        size = tuple(side * self.cell_size for side in grid)
        return self.pipeline._get_add_time_ids(size, (0, 0), size, dtype, pooled_size).to(device)
