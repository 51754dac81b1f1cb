# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from dataclasses import dataclass, replace
from functools import lru_cache

import PIL.Image
import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_flux3 import Flux3ModeTransformerBlock, Flux3SingleTransformerBlock
from diffusers.modular_pipelines.flux3.before_denoise import Flux3TextRoPEInputsStep, _prepare_image_ids
from diffusers.modular_pipelines.flux3.image_processor import Flux3ImageProcessor

from ..noise import RectifiedFlow
from .base import ReferenceRule
from .modular import ModularFamily


@dataclass
class Flux3References(ReferenceRule):
    """
    One reference is kept whole, filled up by its reflection to multiples of a cell; each of several is cut down to them. The
    pipeline's limits of area hold, and `max_area` where it is smaller.
    """

    image_processor: Flux3ImageProcessor
    max_area: int | None
    alone: bool = True

    def among(self, count):
        return replace(self, alone=count == 1)

    def size(self, width, height):
        image = self._shrunk(PIL.Image.new("1", (width, height)))
        if self.alone:
            image = self.image_processor._resize_if_canvas_exceeds_area(image)
            return self.image_processor._get_canvas_height_width(image.height, image.width)
        image = self.image_processor._resize_if_exceeds_area(image)
        cell = self.image_processor.config.vae_scale_factor
        if min(image.size) < cell:
            raise ValueError(f"Its shorter side has no {cell} pixels left")
        return image.height // cell * cell, image.width // cell * cell

    def prepare(self, image):
        pixels, _ = self.image_processor.preprocess(self._shrunk(image), "fill" if self.alone else "crop")
        pixels = ((pixels[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return PIL.Image.fromarray(pixels).convert(image.mode)  # masks are prepared as well

    def _shrunk(self, image):
        return image if self.max_area is None else self.image_processor._resize_if_exceeds_area(image, self.max_area)


class Flux3(ModularFamily):
    """
    FLUX.3: rectified flow on 2x2-packed latents, with 0 to N references behind the target's tokens. Prompts are encoded as
    they are given, not rewritten by the pipeline's upsampler. The denoiser sees the padding of a prompt up to a window of a
    multiple of 80 tokens; prompts of one batch share the largest of their windows.
    """

    # Not on the references' own blocks, which do not run where there are none: their weights would have no gradient
    lora_target_modules = (
        r"(?:mode_blocks\.image|txt_mode_blocks|single_transformer_blocks)\.\d+\.attn\.to_(?:q|k|v|out\.0)"
    )
    reference_counts = (0, None)
    block_lists = ("single_transformer_blocks",)
    unused_blocks = ("prompt_upsampler",)
    text_block = "text_encoder"
    processors = {"tokenizer": "Qwen3VLProcessor"}
    default_resolution = 1024  # the pipeline's, which no configuration holds

    def __init__(self, pipeline, encode_prompt_kwargs=None, guidance_scale=None):
        super().__init__(pipeline, encode_prompt_kwargs, guidance_scale)
        if pipeline.transformer.config.flow_map:
            raise ValueError(
                "This transformer is a flow map: it was distilled for few steps, and preference tuning would undo that. "
                "Train the one it was distilled from."
            )
        # diffusers does not tell where the hidden states are in what these blocks return
        TransformerBlockRegistry.register(Flux3ModeTransformerBlock, TransformerBlockMetadata())
        TransformerBlockRegistry.register(
            Flux3SingleTransformerBlock,
            TransformerBlockMetadata(return_hidden_states_index=1, return_encoder_hidden_states_index=0),
        )
        self.process = RectifiedFlow.from_scheduler(pipeline.scheduler)
        blocks = pipeline.blocks.sub_blocks
        self._text_encoder = self.part(blocks["text_encoder"])
        self._vae_encoder = self.part(blocks["vae_encoder"].sub_blocks["image_conditioning"].sub_blocks["encode"])
        latents = blocks["denoise"].sub_blocks["image_conditioned"].sub_blocks["prepare_latents"]
        self._rope_scale = latents.image_rope_scale
        self._position_ids = lru_cache(self._position_ids)  # one entry per layout

    @property
    def cell_size(self):
        return 2 * self.pipeline.vae_scale_factor

    @property
    def template_tokens(self):
        text = self.pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True
        )
        return len(self.tokenizer(text).input_ids)

    def reference_rule(self, resolution=None):
        return Flux3References(self.pipeline.image_processor, resolution and resolution**2)

    def encode_prompt(self, prompts, references=None):
        def encode(prompts):  # the block takes one at a time
            return [
                self._text_encoder(prompt=prompt, output="prompt_embeds", **self.encode_prompt_kwargs)
                for prompt in prompts
            ]

        block = self._text_encoder._blocks
        multiple, embeds = block.pad_multiple, encode(prompts)
        windows = {len(part[0]) for part in embeds}
        if len(windows) > 1:
            block.pad_multiple, embeds = max(windows), None
            embeds = encode(prompts)
            block.pad_multiple = multiple
        return {"prompt_embeds": torch.cat(embeds)}

    def encode_image(self, pixels_BCHW):
        return self._vae_encoder(condition_images=[pixels_BCHW], output="image_cond_latents")[0]

    def predict(self, denoiser, x_BCHW, timestep_B, prompt, references):
        embeds = prompt["prompt_embeds"].to(x_BCHW.dtype)
        grid, *grids = (tuple(image.shape[-2:]) for image in (x_BCHW, *references))
        conditions = {}
        if references:
            tokens = torch.cat([image.flatten(2) for image in references], dim=2).mT
            ids = torch.cat([self._position_ids(*size, -index, x_BCHW.device) for index, size in enumerate(grids, 1)])
            conditions = {"image_cond_hidden_states": tokens.to(x_BCHW.dtype), "image_cond_ids": ids}
        prediction = denoiser(
            hidden_states=x_BCHW.flatten(2).mT,
            encoder_hidden_states=embeds,
            timestep=timestep_B,
            img_ids=self._position_ids(*grid, 0, x_BCHW.device),
            txt_ids=Flux3TextRoPEInputsStep._prepare_text_ids(embeds).to(x_BCHW.device),
            return_dict=False,
            **conditions,
        )[0]
        return prediction.mT.unflatten(2, grid)

    def _position_ids(self, height, width, image, device):
        return _prepare_image_ids(height, width, self._rope_scale, image).to(device)
