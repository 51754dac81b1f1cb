# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .base import Family


# Class of a diffusers pipeline -> file of this folder and class in it. A new family is one file and one line here; a class of
# your own may be entered from outside: `FAMILIES["MyPipeline"] = MyFamily` (docs/new_family.md).
FAMILIES = {
    "Flux2KleinPipeline": ("flux2", "Flux2"),
    "Flux2Pipeline": ("flux2", "Flux2"),
    "Flux3ModularPipeline": ("flux3", "Flux3"),
    "FluxKontextPipeline": ("flux", "FluxKontext"),
    "FluxPipeline": ("flux", "Flux"),
    "QwenImage21Pipeline": ("qwen_image_21", "QwenImage21"),
    "QwenImageEditPipeline": ("qwen_image", "QwenImageEdit"),
    "QwenImageEditPlusPipeline": ("qwen_image", "QwenImageEditPlus"),
    "QwenImagePipeline": ("qwen_image", "QwenImage"),
    "StableDiffusion3Pipeline": ("stable_diffusion_3", "StableDiffusion3"),
    "StableDiffusionPipeline": ("stable_diffusion", "StableDiffusion"),
    "StableDiffusionXLPipeline": ("stable_diffusion", "StableDiffusionXL"),
    "ZImageOmniPipeline": ("z_image", "ZImageOmni"),
    "ZImagePipeline": ("z_image", "ZImage"),
}


def family_class(pipeline_classes: list[str]) -> "type[Family]":
    """
    The family of a pipeline.

    Args:
        pipeline_classes (`list[str]`):
            Names of the pipeline's class and of its bases, nearest first.

    Raises:
        ValueError: If none of them is known; the message lists those that are.
    """
    for name in pipeline_classes:
        if name in FAMILIES:
            if isinstance(FAMILIES[name], type):
                return FAMILIES[name]
            module, cls = FAMILIES[name]
            return getattr(import_module(f".{module}", __name__), cls)
    raise ValueError(
        f"{pipeline_classes[0]} is no pipeline of a known family. Known are: {', '.join(sorted(FAMILIES))}."
    )


def __getattr__(name):  # without diffusers, until a family is needed
    if name != "Family":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(".base", __name__).Family


__all__ = ["FAMILIES", "Family", "family_class"]
