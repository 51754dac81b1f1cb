# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ..noise import RectifiedFlow
from .base import Family


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5: rectified flow on latents that the transformer patches itself. Text alone conditions it."""

    optional_components = ("text_encoder_3", "tokenizer_3")  # T5, without which the pipeline takes zeros

    def __init__(self, pipeline, encode_prompt_kwargs=None, guidance_scale=None):
        super().__init__(pipeline, encode_prompt_kwargs, guidance_scale)
        self.process = RectifiedFlow.from_scheduler(pipeline.scheduler)

    @property
    def cell_size(self):
        return self.pipeline.patch_size * self.pipeline.vae_scale_factor

    @property
    def default_resolution(self):
        return self.pipeline.default_sample_size * self.pipeline.vae_scale_factor

    def encode_prompt(self, prompts, references=None):
        others = {"prompt_2": None, "prompt_3": None, **self.encode_prompt_kwargs}
        embeds, _, pooled, _ = self.pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, **others)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def encode_image(self, pixels_BCHW):
        vae = self.pipeline.vae
        latents = vae.encode(pixels_BCHW.to(vae.dtype)).latent_dist.mode()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        return pixel_unshuffle(latents, self.pipeline.patch_size)

    def predict(self, denoiser, x_BCHW, timestep_B, prompt, references):
        prediction = denoiser(
            hidden_states=pixel_shuffle(x_BCHW, self.pipeline.patch_size),
            timestep=timestep_B * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=prompt["prompt_embeds"].to(x_BCHW.dtype),
            pooled_projections=prompt["pooled_prompt_embeds"].to(x_BCHW.dtype),
            return_dict=False,
        )[0]
        return pixel_unshuffle(prediction, self.pipeline.patch_size)
