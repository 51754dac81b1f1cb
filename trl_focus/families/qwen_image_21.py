# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import inspect

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21TransformerBlock
from diffusers.pipelines.qwenimage21 import pipeline_qwenimage21

from .qwen_image import QwenImage, QwenReferences
from .timestep import exact_timestep


class QwenImage21(QwenImage):
    """
    Qwen-Image 2.1: rectified flow on latents that are not packed, with 0 to N references in the places that the prompt's
    encoder saw them in, and the target behind all text.

    In a batch, shorter prompts are padded before the target, which moves it away from them, as in the pipeline's own batches.
    """

    reference_counts = (0, None)
    max_prompt_tokens = None  # these prompts are not cut

    def __init__(self, pipeline, encode_prompt_kwargs=None, guidance_scale=None):
        super().__init__(pipeline, encode_prompt_kwargs, guidance_scale)
        # diffusers does not tell where the hidden states are in what this block returns
        TransformerBlockRegistry.register(
            QwenImage21TransformerBlock, TransformerBlockMetadata(return_hidden_states_index=0)
        )

    @property
    def cell_size(self):
        return self.pipeline.vae_scale_factor

    @property
    def size_multiple(self):
        return 2 * self.cell_size  # the prompt's encoder has one place for 2x2 cells

    @property
    def default_resolution(self):
        return inspect.signature(self.pipeline.__call__).parameters["output_resolution"].default

    def reference_rule(self, resolution=None):
        area = (resolution or self.default_resolution) ** 2
        return QwenReferences(
            self.pipeline.image_processor, pipeline_qwenimage21.calculate_dimensions, area, prompt_area=area
        )

    def token_ranges(self, length, grid, reference_grids):
        # ahead of the references stands what opens the user's message, between them what names the next
        opening, following = "<|im_start|>user\n<image1><|vision_start|>", "<|vision_end|> <image2><|vision_start|>"
        between = len(self.tokenizer(following).input_ids)
        start, references = len(self.tokenizer(opening).input_ids), []
        for height, width in reference_grids:
            references.append(slice(start, start + height * width))
            start += height * width + between
        return slice(length - grid[0] * grid[1], length), references

    def encode_prompt(self, prompts, references=None):
        rows = [
            self.pipeline.encode_prompt([prompt], images or None, **self.encode_prompt_kwargs)
            for prompt, images in zip(prompts, references or [None] * len(prompts), strict=True)
        ]
        return self.stack_prompts([{"prompt_embeds": embeds, "image_places": places} for embeds, _, places in rows])

    def encode_image(self, pixels_BCHW):
        alpha = pixels_BCHW.new_ones(len(pixels_BCHW), 1, *pixels_BCHW.shape[-2:])  # images are opaque
        return self.encode_frame(torch.cat([pixels_BCHW, alpha], dim=1))

    def predict(self, denoiser, x_BCHW, timestep_B, prompt, references):
        images = [*references, x_BCHW]
        height, width = x_BCHW.shape[-2:]
        places = prompt["image_places"]
        levels = [timestep_B, timestep_B.new_zeros(1)] if self.denoiser.config.causal_condition else [timestep_B]
        with exact_timestep(denoiser, torch.cat(levels)):
            prediction = denoiser(
                hidden_states=torch.cat(
                    [image.to(x_BCHW.dtype).flatten(2).transpose(1, 2) for image in images], dim=1
                ),
                timestep=timestep_B,
                encoder_hidden_states=prompt["prompt_embeds"].to(x_BCHW.dtype),
                encoder_hidden_states_mask=prompt.get("prompt_embeds_mask"),
                img_shapes=[[(1, *image.shape[-2:]) for image in images]] * len(x_BCHW),
                img_mask=torch.cat([places, places.new_ones(len(places), height * width // 4)], dim=1),
                return_dict=False,
            )[0]
        return prediction[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
