# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import torch
from diffusers import ModularPipeline, PipelineQuantizationConfig

from .base import HUB_KWARGS, Family


class ModularFamily(Family):
    """
    A family whose pipeline is modular: made of blocks, which are called with what they declare, and given its components
    after it is made. A block runs by itself as a pipeline of one (`part`).
    """

    unused_blocks: tuple[str, ...] = ()  # left out where the pipeline is loaded by us
    text_block: str  # the block that encodes prompts

    @classmethod
    def load(cls, name: str, quantization_config=None, **kwargs):
        hub = {key: kwargs.pop(key) for key in HUB_KWARGS if key in kwargs}
        whole = ModularPipeline.from_pretrained(name, **hub)
        blocks = whole.blocks
        for block in cls.unused_blocks:
            blocks.sub_blocks.pop(block, None)
        pipeline = type(whole)(blocks, name, **hub)
        given = {key: kwargs.pop(key) for key in pipeline.component_names if key in kwargs}
        pipeline.update_components(**given)
        if isinstance(quantization_config, PipelineQuantizationConfig):
            quantization_config = quantization_config.quant_mapping
        names = [key for key in pipeline.pretrained_component_names if key not in given]
        specs = {name: pipeline.get_component_spec(name) for name in names}
        models = [
            name
            for name in names
            if isinstance(cls := specs[name].type_hint, type) and issubclass(cls, torch.nn.Module)
        ]
        pipeline.load_components(
            names,
            **({} if quantization_config is None else {"quantization_config": quantization_config}),
            **kwargs,
            use_safetensors=dict.fromkeys(models, True),
        )
        # diffusers warns, and leaves out what it could not load
        if failed := [n for n in names if specs[n].pretrained_model_name_or_path and getattr(pipeline, n) is None]:
            raise OSError(f"{', '.join(failed)} of {name} could not be loaded (weights must be safetensors).")
        return pipeline

    @property
    def model_name(self):
        return self.pipeline._pretrained_model_name_or_path

    @property
    def call_defaults(self):
        return {name: value for name, value in self.pipeline.default_call_parameters.items() if name is not None}

    @property
    def encode_defaults(self):
        return {value.name: value.default for value in self.pipeline.blocks.sub_blocks[self.text_block].inputs}

    def part(self, block) -> ModularPipeline:
        """A pipeline of this block alone, with the components of the whole."""
        part = type(self.pipeline)(block)
        part.update_components(**{name: self.pipeline.components[name] for name in part.component_names})
        return part
