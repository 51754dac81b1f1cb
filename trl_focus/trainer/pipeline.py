# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline, ModularPipeline, PipelineQuantizationConfig
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from transformers.utils import is_torchvision_available, logging

from ..families import Family, family_class
from ..families.base import HUB_KWARGS


logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    from .diffusion_dpo_config import DiffusionDPOConfig


def _dtype(args: "DiffusionDPOConfig") -> torch.dtype:
    kwargs = args.model_init_kwargs or {}
    default = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    dtype = kwargs.get("dtype", kwargs.get("torch_dtype", default))  # diffusers' former name for it
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _check_processors(family: type[Family], config: dict, args: "DiffusionDPOConfig"):
    """Refuses processors of transformers that need torchvision where there is none: loading them fails in other words."""
    given = args.model_init_kwargs or {}
    for key, value in config.items():
        if key in given or not isinstance(value, list):
            continue
        # a modular index may name no class, or the one that looks the class up
        name = family.processors.get(key) if value[1] in (None, "AutoProcessor") else value[1]
        if name in NEED_TORCHVISION and not is_torchvision_available():
            raise ImportError(
                f"The pipeline's `{key}` is a {name}, which needs torchvision: `pip install torchvision` (the build of your "
                "torch: see https://pytorch.org/get-started)."
            )


@contextmanager
def _whole_on_every_process() -> Iterator[None]:
    """
    Within it transformers loads weights on every process. Under FSDP with `cpu_ram_efficient_loading` (as in TRL's preset
    `fsdp2`) it would on the first alone, and leave the others to FSDP, which never sees the text encoders.
    """
    before = os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = before


def _load_config(model: str | Path, **kwargs) -> dict:
    """The index of a pipeline's components, or of a modular pipeline's."""
    try:
        return DiffusionPipeline.load_config(model, **kwargs)
    except OSError as error:
        try:
            return ModularPipeline.load_config(model, **kwargs)
        except OSError:
            raise error from None


def load_pipeline(model: "str | DiffusionPipeline", args: "DiffusionDPOConfig", quantization_config=None) -> Family:
    """
    Loads a pipeline and finds its family.

    Args:
        model (`str` or `DiffusionPipeline`):
            Hub id, folder, or a loaded pipeline.
        args ([`DiffusionDPOConfig`]):
            Its `model_init_kwargs`, precision and what concerns encoding are read.
        quantization_config (*optional*):
            A `PipelineQuantizationConfig`, or a diffusers quantization config for the denoiser alone.

    Raises:
        TypeError: If it is neither.
        ValueError: If the pipeline is of no known family, or is loaded and should be quantized.
    """
    if isinstance(model, str | Path):
        # The class is read first, so that an unknown family is refused before gigabytes are loaded
        init_kwargs = {key: value for key, value in (args.model_init_kwargs or {}).items() if key != "torch_dtype"}
        config = _load_config(model, **{key: value for key, value in init_kwargs.items() if key in HUB_KWARGS})
        name = config["_class_name"]
        family = family_class([name])
        family.check_components(key for key, value in config.items() if value == [None, None])
        _check_processors(family, config, args)
        if quantization_config is not None and not isinstance(quantization_config, PipelineQuantizationConfig):
            quantization_config = PipelineQuantizationConfig(quant_mapping={family.denoiser_name: quantization_config})
        kwargs = {} if quantization_config is None else {"quantization_config": quantization_config}
        if init_kwargs.pop("use_safetensors", True) is False:
            raise ValueError(
                "`model_init_kwargs` has `use_safetensors=False`, which reads weights by pickle: that can run code. Leave it out."
            )
        try:
            with _whole_on_every_process():
                pipeline = family.load(str(model), **{**init_kwargs, **kwargs, "dtype": _dtype(args)})
        except OSError as error:
            if "safetensors" not in str(error):
                raise
            raise ValueError(
                f"{model} has weights that are not safetensors, and others are read by pickle, which can run code: {error} Save "
                "the pipeline with `save_pretrained` where you trust it, and give that folder."
            ) from error
    elif isinstance(model, DiffusionPipeline | ModularPipeline):
        if quantization_config is not None:
            raise ValueError(
                "`quantization_config` is for a model given as a string; this pipeline is loaded already. Quantize it "
                "when you load it, with `from_pretrained(..., quantization_config=...)`."
            )
        pipeline = model
        family = family_class([cls.__name__ for cls in type(model).__mro__])
    else:
        raise TypeError(
            f"`model` must be a Hub id, a folder or a loaded `DiffusionPipeline`, got {type(model).__name__}. Give the "
            "whole pipeline: training needs its text encoders and VAE as well."
        )
    family = family(pipeline, args.encode_prompt_kwargs, args.guidance_scale)
    if any(hasattr(part, "_hf_hook") or _is_group_offload_enabled(part) for part in family.modules.values()):
        raise ValueError(
            "The pipeline is offloaded in a way that is for sampling: the backward pass would read weights that are away. Call "
            "`pipeline.remove_all_hooks()`, or give the trainer a pipeline without offload, and set `offload_blocks` if the "
            "denoiser's weights don't fit on the device."
        )
    if args.reference_positions is not None:
        family.place_references(args.reference_positions)
    if args.sampling_steps is not None:
        family.sampled_in(args.sampling_steps)
    elif family.looks_distilled:
        logger.warning(
            "The pipeline's scheduler spaces timesteps as for a model that was distilled to few steps, and this trains at all. If "
            "it was, set `sampling_steps` to the most steps it is sampled in (4 for SDXL-Turbo)."
        )
    return family


NEED_TORCHVISION = ("PixtralProcessor", "Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor")


def _check_same_model(pipeline_classes: list[str], config: dict, family: Family):
    """Refuses a reference of another family, or one of the family that other inputs fit."""
    if pipeline_classes and (theirs := family_class(pipeline_classes)) is not type(family):
        raise ValueError(
            f"`ref_model` is of the family {theirs.__name__}, and `model` of {type(family).__name__}: their inputs differ. Give a "
            "reference of the same family."
        )
    ours = family.denoiser.config
    sizes = [key for key in ours if key.endswith(("channels", "_dim", "_embeds")) and ours[key] != config.get(key)]
    if sizes:
        raise ValueError(
            f"`ref_model` has {', '.join(f'{key}={config.get(key)!r}' for key in sizes)}, and `model` "
            f"{', '.join(f'{key}={ours[key]!r}' for key in sizes)}. Give a reference that `model` was made from, or that was made "
            "from it."
        )


def load_reference(ref_model, family: Family, args: "DiffusionDPOConfig") -> torch.nn.Module:
    """
    The denoiser of a reference given as an id, a pipeline or a denoiser.

    Raises:
        ValueError: If it is of another family or class than the policy's, of other dimensions, or the policy's own.
    """
    expected = type(family.denoiser)
    if isinstance(ref_model, str | Path):  # its denoiser alone: encoding is the policy's
        config = expected.load_config(str(ref_model), subfolder=family.denoiser_name)
        if config["_class_name"] == expected.__name__:
            try:
                classes = [_load_config(ref_model)["_class_name"]]
            except OSError:  # a folder of the denoiser alone
                classes = []
            _check_same_model(classes, config, family)
            return expected.from_pretrained(
                str(ref_model), subfolder=family.denoiser_name, dtype=_dtype(args), use_safetensors=True
            )
        found = config["_class_name"]
    else:
        classes = []
        if isinstance(ref_model, DiffusionPipeline | ModularPipeline):
            classes = [cls.__name__ for cls in type(ref_model).__mro__]
            ref_model = getattr(ref_model, family.denoiser_name, ref_model)
        found = type(ref_model).__name__
    if found != expected.__name__:
        raise ValueError(f"`ref_model` is a {found}; it must be a {expected.__name__}, as the policy.")
    _check_same_model(classes, ref_model.config, family)
    if ref_model is family.denoiser:
        raise ValueError(
            "`ref_model` is the policy's own denoiser. Leave it out: the LoRA is switched off for the reference."
        )
    return ref_model
