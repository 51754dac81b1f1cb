# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict


def lora_metadata(config: LoraConfig) -> dict[str, Any]:
    """
    What diffusers must know of a LoRA config to load it at its own strength: rank, alpha, and what else differs from
    PEFT's defaults. The whole config would only load with a PEFT that knows each of its fields. Releases of diffusers
    before 0.40 look `rank_pattern` up, whatever it is.
    """
    default = LoraConfig().to_dict()
    local = {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "init_lora_weights",
        "lora_dropout",  # diffusers puts LoRA layers in training mode, where it would act
        "peft_version",
        "task_type",
    }
    fields = {
        key: value
        for key, value in config.to_dict().items()
        if key in ("r", "lora_alpha", "rank_pattern") or (value != default.get(key) and key not in local)
    }
    return {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}


def save_lora(
    pipeline,
    denoiser_name: str,
    policy: PeftModel,
    folder: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
    adapter_name: str = "default",
):
    """
    Writes `pytorch_lora_weights.safetensors`, which `pipeline.load_lora_weights(folder)` reads.

    Args:
        pipeline (`DiffusionPipeline`):
            Pipeline of the model; its own `save_lora_weights` writes the file.
        denoiser_name (`str`):
            `"transformer"` or `"unet"`.
        policy (`PeftModel`):
            Model that holds the LoRA.
        folder (`str` or `Path`):
            Where to write.
        state_dict (`dict`, *optional*):
            Gathered weights, where the model is sharded.
        adapter_name (`str`, *optional*, defaults to `"default"`):
            Which adapter.
    """
    weights = get_peft_model_state_dict(policy, state_dict=state_dict, adapter_name=adapter_name)
    weights = {key.removeprefix("base_model.model."): value.contiguous() for key, value in weights.items()}
    pipeline.save_lora_weights(
        folder,
        **{
            f"{denoiser_name}_lora_layers": weights,
            f"{denoiser_name}_lora_adapter_metadata": lora_metadata(policy.peft_config[adapter_name]),
        },
    )
