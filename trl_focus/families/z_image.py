# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from itertools import accumulate

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from torch.nn.utils.rnn import pad_sequence

from ..noise import RectifiedFlow
from .base import Family
from .flux2 import MAX_REFERENCE_AREA, Flux2References


def _padded(length: int) -> int:
    """Tokens that a part of the sequence takes: the denoiser fills each up to a multiple."""
    return -(-length // SEQ_MULTI_OF) * SEQ_MULTI_OF


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

    def encode_prompt(self, prompts, references=()):
        embeds, _ = self.pipeline.encode_prompt(
            [*prompts],  # the pipeline writes its chat template into the list
            do_classifier_free_guidance=False,
            **self.encode_prompt_kwargs,
        )
        return self._as_batch([[prompt] for prompt in embeds])

    def _as_batch(self, captions: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Captions of a batch, each in as many parts, and the length of each part; lengths stay on the CPU, to be read."""
        parts = [part for caption in captions for part in caption]
        return {
            "prompt_embeds": pad_sequence(parts, batch_first=True).unflatten(0, (len(captions), -1)),
            "prompt_lengths": torch.tensor([[len(part) for part in caption] for caption in captions]),
        }

    def _captions(self, prompt: dict[str, torch.Tensor], dtype: torch.dtype) -> list[list[torch.Tensor]]:
        return [
            [part[:length] for part, length in zip(parts, lengths, strict=True)]
            for parts, lengths in zip(
                prompt["prompt_embeds"].to(dtype), prompt["prompt_lengths"].tolist(), strict=True
            )
        ]

    def encode_image(self, pixels_BCHW):
        vae = self.pipeline.vae
        latents = vae.encode(pixels_BCHW.to(vae.dtype)).latent_dist.mode()
        return F.pixel_unshuffle((latents - vae.config.shift_factor) * vae.config.scaling_factor, 2)

    def predict(self, denoiser, x_BCHW, timestep_B, prompt, references):
        captions = [caption for (caption,) in self._captions(prompt, x_BCHW.dtype)]
        prediction = denoiser(list(_image(x_BCHW)), 1 - timestep_B, captions, return_dict=False)[0]
        return -_cells(prediction)


class ZImageOmni(ZImage):
    """
    Z-Image Omni: 0 to N references, clean images in front of the noisy one in the denoiser's sequence; a SigLIP encoder
    shows them once more. With references the pipeline samples only if its VAE is in bfloat16.
    """

    # Not on the SigLIP part, which does not run where there are no references: its weights would have no gradient
    lora_target_modules = r"(?:layers|noise_refiner|context_refiner)\.\d+\.attention\.to_(?:q|k|v|out\.0)"
    block_lists = ("layers",)

    @property
    def encoders(self):
        return [*super().encoders, self.pipeline.siglip]

    def reference_rule(self, resolution=None):
        max_area = min(resolution**2, MAX_REFERENCE_AREA) if resolution else MAX_REFERENCE_AREA
        return Flux2References(self.pipeline.image_processor, self.cell_size, max_area)

    def image_tokens(self, tokens_BSD, prompt, grid, reference_grids):
        # [caption, references, target, SigLIP], each part filled up, and captions of a batch differ in length
        captions = [sum(map(_padded, lengths)) for lengths in prompt["prompt_lengths"].tolist()]
        sizes = [height * width for height, width in (*reference_grids, grid)]
        starts = accumulate(map(_padded, sizes), initial=0)
        *references, target = (
            torch.stack(
                [tokens[caption + start :][:size] for tokens, caption in zip(tokens_BSD, captions, strict=True)]
            )
            for start, size in zip(starts, sizes, strict=False)
        )
        return target, references

    def encode_prompt(self, prompts, references=()):
        embeds, _ = self.pipeline.encode_prompt(
            [*prompts],
            do_classifier_free_guidance=False,
            num_condition_images=len(references),
            **self.encode_prompt_kwargs,
        )
        prompt = self._as_batch(embeds)
        for number, pixels_BCHW in enumerate(references):
            images = ((pixels_BCHW + 1) * 127.5).round().to("cpu", torch.uint8)  # as the pipeline's are
            (shown,) = self.pipeline.prepare_siglip_embeds(
                list(images), 1, self.pipeline._execution_device, self.denoiser.dtype
            )
            prompt[f"siglip_embeds_{number}"] = torch.stack(shown)
        return prompt

    def predict(self, denoiser, x_BCHW, timestep_B, prompt, references):
        images = zip(*(_image(image).to(x_BCHW.dtype) for image in (*references, x_BCHW)), strict=True)
        shown = [prompt[f"siglip_embeds_{number}"].to(x_BCHW.dtype) for number in range(len(references))]
        prediction = denoiser(
            x=[list(row) for row in images],
            t=1 - timestep_B,
            cap_feats=self._captions(prompt, x_BCHW.dtype),
            siglip_feats=[[*row, None] for row in zip(*shown, strict=True)] or [None] * len(x_BCHW),
            image_noise_mask=[[0] * len(references) + [1]] * len(x_BCHW),
            return_dict=False,
        )[0]
        return -_cells(prediction)


def _image(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Cells to latents of one frame, as the denoiser takes them."""
    return F.pixel_shuffle(x_BCHW, 2)[:, :, None]


def _cells(images: list[torch.Tensor]) -> torch.Tensor:
    return F.pixel_unshuffle(torch.stack(images).squeeze(2), 2)
