# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF

from ..noise import RectifiedFlow
from .base import Family
from .flux2 import MAX_REFERENCE_AREA, Flux2References


class ZImage(Family):
    """
    Z-Image: rectified flow on 2x2-packed latents. Its denoiser counts time from noise to image, and so does what it
    predicts: the pipeline hands it 1 - sigma, and its scheduler the negative of what comes back.
    """

    default_resolution = 1024  # the pipeline's, which no configuration holds

    def __init__(self, pipeline, encode_prompt_kwargs=None, guidance_scale=None):
        super().__init__(pipeline, encode_prompt_kwargs, guidance_scale)
        self.process = RectifiedFlow.from_scheduler(pipeline.scheduler)

    @property
    def cell_size(self):
        return 2 * self.pipeline.vae_scale_factor

    @property
    def template_tokens(self):
        messages = [{"role": "user", "content": ""}]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return len(self.tokenizer(text).input_ids)

    def encode_prompt(self, prompts, references=None):
        embeds, _ = self.pipeline.encode_prompt(
            [*prompts],  # the pipeline writes its chat template into the list
            do_classifier_free_guidance=False,
            **self.encode_prompt_kwargs,
        )
        return {"prompt_embeds": embeds}

    def encode_image(self, pixels_BCHW):
        vae = self.pipeline.vae
        latents = vae.encode(pixels_BCHW.to(vae.dtype)).latent_dist.mode()
        return F.pixel_unshuffle((latents - vae.config.shift_factor) * vae.config.scaling_factor, 2)

    def predict(self, denoiser, x_BCHW, timestep_B, prompt, references):
        captions = [caption.to(x_BCHW.dtype) for caption in prompt["prompt_embeds"]]
        prediction = denoiser(list(_images(x_BCHW)), 1 - timestep_B, captions, return_dict=False)[0]
        return -_cells(prediction)


@dataclass
class ZImageReferences(Flux2References):
    """As FLUX.2's; SigLIP is shown the reference before its sides are cut down."""

    def prepare_for_prompt(self, image):
        return self.image_processor._resize_if_exceeds_area(image, self.max_area)


class ZImageOmni(ZImage):
    """
    Z-Image Omni: 0 to N references, clean images in front of the noisy one in the denoiser's sequence, which SigLIP
    shows once more behind it. With references the pipeline samples only if its VAE is in bfloat16.
    """

    # Not on SigLIP's part, which does not run where there are no references: its weights would have no gradient
    lora_target_modules = r"(?:layers|noise_refiner|context_refiner)\.\d+\.attention\.to_(?:q|k|v|out\.0)"
    reference_counts = (0, None)
    block_lists = ("layers",)
    needed_components = (*ZImage.needed_components, "siglip")

    @property
    def encoders(self):
        return [*super().encoders, self.pipeline.siglip]

    def reference_rule(self, resolution=None):
        max_area = min(resolution**2, MAX_REFERENCE_AREA) if resolution else MAX_REFERENCE_AREA
        return ZImageReferences(self.pipeline.image_processor, self.cell_size, max_area)

    def image_tokens(self, tokens_BSD, prompt, grid, reference_grids):
        # [caption, references, target, SigLIP]: each part is filled up to a multiple, and captions differ in length
        captions = [sum(_filled_up(len(part)) for part in caption) for caption in prompt["prompt_embeds"]]
        sizes = [height * width for height, width in (*reference_grids, grid)]
        starts = accumulate(map(_filled_up, sizes), initial=0)
        *references, target = (
            torch.stack([row[caption + start :][:size] for row, caption in zip(tokens_BSD, captions, strict=True)])
            for start, size in zip(starts, sizes, strict=False)
        )
        return target, references

    def encode_prompt(self, prompts, references=None):
        references = references or [[]] * len(prompts)
        embeds, _ = self.pipeline.encode_prompt(
            [*prompts],
            do_classifier_free_guidance=False,
            num_condition_images=len(references[0]),
            **self.encode_prompt_kwargs,
        )
        device, dtype = self.pipeline._execution_device, self.denoiser.dtype
        shown = [self.pipeline.prepare_siglip_embeds(images, 1, device, dtype)[0] for images in references]
        return {"prompt_embeds": embeds, "siglip_embeds": shown}

    def predict(self, denoiser, x_BCHW, timestep_B, prompt, references):
        dtype = x_BCHW.dtype
        images = zip(*(_images(image).to(dtype) for image in (*references, x_BCHW)), strict=True)
        prediction = denoiser(
            x=[list(row) for row in images],
            t=1 - timestep_B,
            cap_feats=[[part.to(dtype) for part in caption] for caption in prompt["prompt_embeds"]],
            # the noisy image is shown to nobody
            siglip_feats=[
                [*(seen.to(dtype) for seen in row), None] if row else None for row in prompt["siglip_embeds"]
            ],
            image_noise_mask=[[0] * len(references) + [1]] * len(x_BCHW),
            return_dict=False,
        )[0]
        return -_cells(prediction)


def _filled_up(length: int) -> int:
    return -(-length // SEQ_MULTI_OF) * SEQ_MULTI_OF


def _images(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Cells to latents of one frame, as the denoiser takes them."""
    return F.pixel_shuffle(x_BCHW, 2)[:, :, None]


def _cells(images: list[torch.Tensor]) -> torch.Tensor:
    return F.pixel_unshuffle(torch.stack(images).squeeze(2), 2)
