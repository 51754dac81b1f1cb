# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from torch.nn.functional import pixel_unshuffle
from torch.nn.utils.rnn import pad_sequence

from ..noise import RectifiedFlow
from .base import Family, ReferenceRule
from .timestep import exact_timestep


@dataclass
class QwenReferences(ReferenceRule):
    """Resizes references to `area` pixels, and to `prompt_area` pixels for the prompt's encoder, which sees them too."""

    image_processor: VaeImageProcessor
    calculate_dimensions: Callable  # the pipeline's own
    area: int
    prompt_area: int

    def size(self, width, height, area=None):
        width, height = self.calculate_dimensions(area or self.area, width / height)[:2]
        if min(width, height) == 0:
            raise ValueError("It is too long and thin: one of its sides would have no pixels left")
        return height, width

    def prepare(self, image):
        return self.image_processor.resize(image, *self.size(*image.size))

    def prepare_for_prompt(self, image):
        return self.image_processor.resize(image, *self.size(*image.size, self.prompt_area))


class QwenImage(Family):
    """Qwen-Image: rectified flow on 2x2-packed latents of one frame. Text alone conditions it."""

    block_lists = ("transformer_blocks",)
    pads_prompts = True

    def __init__(self, pipeline, encode_prompt_kwargs=None, guidance_scale=None):
        super().__init__(pipeline, encode_prompt_kwargs, guidance_scale)
        self.process = RectifiedFlow.from_scheduler(pipeline.scheduler)

    @staticmethod
    def stack_prompts(prompts):
        masks = [
            prompt["prompt_embeds"].new_ones(prompt["prompt_embeds"].shape[:2], dtype=torch.long) for prompt in prompts
        ]
        prompts = [{"prompt_embeds_mask": mask, **prompt} for mask, prompt in zip(masks, prompts, strict=True)]
        padded = {
            name: pad_sequence([row for prompt in prompts for row in prompt[name]], batch_first=True)
            for name in prompts[0]
        }
        if padded["prompt_embeds_mask"].all():
            del padded["prompt_embeds_mask"]
        return padded

    @property
    def cell_size(self):
        return 2 * self.pipeline.vae_scale_factor

    @property
    def default_resolution(self):
        return self.pipeline.default_sample_size * self.pipeline.vae_scale_factor

    @property
    def template_tokens(self):
        template = self.tokenizer(self.pipeline.prompt_template_encode.format("")).input_ids
        return len(template) - self.pipeline.prompt_template_encode_start_idx  # what stands in front is dropped unread

    def encode_prompt(self, prompts, references=None):
        embeds, mask = self.pipeline.encode_prompt(prompts, **self.encode_prompt_kwargs)
        return {"prompt_embeds": embeds} if mask is None else {"prompt_embeds": embeds, "prompt_embeds_mask": mask}

    def encode_image(self, pixels_BCHW):
        return pixel_unshuffle(self.encode_frame(pixels_BCHW), 2)

    def encode_frame(self, pixels_BCHW):
        """Normalised latents of a video of one frame."""
        vae = self.pipeline.vae
        latents_BCHW = vae.encode(pixels_BCHW.to(vae.dtype)[:, :, None]).latent_dist.mode()[:, :, 0]
        mean, std = (
            torch.tensor(value).to(latents_BCHW)[:, None, None]
            for value in (vae.config.latents_mean, vae.config.latents_std)
        )
        return (latents_BCHW - mean) / std

    def predict(self, denoiser, x_BCHW, timestep_B, prompt, references):
        images = [x_BCHW, *references]
        tokens = torch.cat([image.to(x_BCHW.dtype).flatten(2).transpose(1, 2) for image in images], dim=1)
        # Edit-2511 takes references as clean: it embeds their level as well
        levels = [timestep_B, 0 * timestep_B] if self.denoiser.config.zero_cond_t else [timestep_B]
        with exact_timestep(denoiser, torch.cat(levels)):
            prediction = denoiser(
                hidden_states=tokens,
                timestep=timestep_B,
                encoder_hidden_states=prompt["prompt_embeds"].to(x_BCHW.dtype),
                encoder_hidden_states_mask=prompt.get("prompt_embeds_mask"),
                img_shapes=[[(1, *image.shape[-2:]) for image in images]] * len(x_BCHW),
                return_dict=False,
            )[0]
        height, width = x_BCHW.shape[-2:]
        return prediction[:, : height * width].transpose(1, 2).unflatten(2, (height, width))


class QwenImageEditPlus(QwenImage):
    """Qwen-Image-Edit 2509 and 2511: 1 to N references, which the prompt's encoder sees as well."""

    reference_counts = (1, None)
    max_prompt_tokens = None  # these prompts are not cut

    def reference_rule(self, resolution=None):
        module = pipeline_qwenimage_edit_plus
        area = min(resolution**2, module.VAE_IMAGE_SIZE) if resolution else module.VAE_IMAGE_SIZE
        processor = self.pipeline.image_processor
        return QwenReferences(processor, module.calculate_dimensions, area, module.CONDITION_IMAGE_SIZE)

    def encode_prompt(self, prompts, references=None):
        # a row at a time, as the pipeline: its templates are made for one set of images
        rows = [
            self.pipeline.encode_prompt(prompt=[prompt], image=self.as_argument(images), **self.encode_prompt_kwargs)[
                0
            ]
            for prompt, images in zip(prompts, references, strict=True)
        ]
        return self.stack_prompts([{"prompt_embeds": row} for row in rows])

    def as_argument(self, images):
        return images


class QwenImageEdit(QwenImageEditPlus):
    """Qwen-Image-Edit: 1 reference."""

    reference_counts = (1, 1)

    def reference_rule(self, resolution=None):
        area = min(resolution or 1024, 1024) ** 2
        # the prompt's encoder sees what the VAE sees
        return QwenReferences(
            self.pipeline.image_processor, pipeline_qwenimage_edit.calculate_dimensions, area, prompt_area=area
        )

    def as_argument(self, images):
        return images[0]
