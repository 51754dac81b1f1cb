# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from typing import Any

import torch
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer


POLICY, REFERENCE = "default", "ref"  # adapter names: PEFT's own for the trained one, TRL's for the frozen copy


class _ConfigView(dict):
    """A diffusers config with what transformers' reporting integrations read from a config of theirs."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def to_dict(self) -> dict[str, Any]:
        return dict(self)

    def to_json_string(self) -> str:
        return json.dumps(self, default=str, indent=2)


class DiffusionPeftModel(PeftModel):
    """
    PEFT model over a diffusers denoiser. LoRA layers are put into the denoiser in place, so the pipeline that holds it
    keeps working; being a `PeftModel` makes the Trainer save, resume and reload adapters alone.
    """

    @property
    def config(self) -> _ConfigView:
        denoiser = self.get_base_model()
        return _ConfigView(denoiser.config, model_type=type(denoiser).__name__)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ):
        """Called by transformers' Trainer. Only the non-reentrant variant fits a model whose inputs need no gradient."""
        kwargs = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if kwargs["use_reentrant"] or every_n_layers != 1 or offload:
            raise ValueError(
                "Diffusers models checkpoint every block, non-reentrant and without offload: leave `use_reentrant`, "
                "`every_n_layers` and `offload` out of `gradient_checkpointing_kwargs`."
            )
        self.get_base_model().enable_gradient_checkpointing(
            lambda block, *args: torch.utils.checkpoint.checkpoint(block.__call__, *args, **kwargs)
        )

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs):
        """The name by which transformers before 5.23 calls `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    @cached_property
    def _lora_layers(self) -> list[BaseTunerLayer]:
        return [module for module in self.modules() if isinstance(module, BaseTunerLayer)]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """
        As PEFT's, which looks through all modules and sets `requires_grad` of all LoRA weights twice: 0.15 s for SDXL's, in
        each step. Nothing needs either while the LoRA is off. Layers that get a LoRA after the first call stay on.
        """
        were_off = [layer.disable_adapters for layer in self._lora_layers]
        self._switch_off([True] * len(were_off))
        try:
            yield
        finally:
            self._switch_off(were_off)

    def _switch_off(self, off: Sequence[bool]):
        for layer, value in zip(self._lora_layers, off, strict=True):
            layer._disable_adapters = value
        self._adapters_disabled = all(off)

    def create_or_update_model_card(self, output_dir: str):
        """Does nothing: PEFT's own would overwrite the trainer's card."""


def check_lora_config(config: LoraConfig):
    """
    Refuses LoRA settings with which switching the adapter off would not give back the base model, or which diffusers
    can't load.

    Raises:
        TypeError: If it is no `LoraConfig`.
        ValueError: If a field has such a value; the message names it.
    """
    if not isinstance(config, LoraConfig):
        raise TypeError(
            f"`peft_config` must be a `peft.LoraConfig`, got {type(config).__name__}. Full fine-tuning and other PEFT "
            "methods are not supported: the reference is the model with its LoRA off, and diffusers loads LoRA."
        )
    allowed = {
        "bias": ("none",),
        "init_lora_weights": (True, False, "gaussian", "orthogonal"),
        "modules_to_save": (None, []),
        "layer_replication": (None,),
        "trainable_token_indices": (None,),
        "kasa_config": (None,),
    }
    for field, values in allowed.items():
        if (value := getattr(config, field, None)) not in values:
            raise ValueError(
                f"`peft_config.{field}={value!r}` changes more than the LoRA weights, so the model with its LoRA off would "
                f"not be the base model any more, or diffusers could not load it. Use {' or '.join(map(repr, values))}."
            )


def check_lora(pipeline, denoiser: torch.nn.Module, peft_config: LoraConfig | None) -> str | None:
    """
    Refuses, before anything is changed, a LoRA that can't be trained: a given one, or one that the pipeline came with.

    Returns:
        `str`, *optional*: adapter name of the LoRA that the pipeline came with, `None` if there is none.

    Raises:
        TypeError: If `peft_config` is no `LoraConfig`.
        ValueError: If both are there, or one of them can't be trained.
    """
    if peft_config is not None:
        check_lora_config(peft_config)
    loaded = {name: part for name, part in pipeline.components.items() if getattr(part, "peft_config", None)}
    if not loaded:
        return None
    if peft_config is not None:
        raise ValueError(
            "The pipeline came with a LoRA, and `peft_config` asks for a new one. Leave `peft_config` out to continue "
            "the loaded one, or call `pipeline.unload_lora_weights()` first to begin anew."
        )
    # the frozen copy that an earlier trainer left beside its LoRA is no second one to continue
    adapters = [name for name in getattr(denoiser, "peft_config", {}) if name != REFERENCE]
    if [*loaded.values()] != [denoiser] or len(adapters) != 1:
        found = ", ".join(f"{name}: {sorted(part.peft_config)}" for name, part in loaded.items())
        raise ValueError(
            f"The pipeline came with more LoRAs than can be continued ({found}). Load one that touches the denoiser "
            "alone, or `pipeline.unload_lora_weights()` to start a new one."
        )
    (name,) = adapters
    config = denoiser.peft_config[name]
    check_lora_config(config)
    for layer in denoiser.modules():
        if isinstance(layer, BaseTunerLayer) and name in layer.scaling:
            rank = layer.r[name] ** 0.5 if config.use_rslora else layer.r[name]
            if layer.merged or layer.scaling[name] != layer.lora_alpha[name] / rank:
                raise ValueError(
                    f"The pipeline's LoRA {name!r} is fused or scaled. Call `pipeline.unfuse_lora()` and "
                    f"`pipeline.set_adapters({name!r}, 1.0)` first: training continues it at its own strength."
                )
    return name


def _take_lora(denoiser: torch.nn.Module, name: str) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Takes a LoRA out of a denoiser: its config and weights."""
    config = denoiser.peft_config[name]
    weights = {key: value.clone() for key, value in get_peft_model_state_dict(denoiser, adapter_name=name).items()}
    recurse_remove_peft_layers(denoiser)
    del denoiser.peft_config
    denoiser._hf_peft_config_loaded = False
    config.inference_mode = False
    return config, weights


def make_policy(pipeline, denoiser: torch.nn.Module, peft_config: LoraConfig | None, default: LoraConfig):
    """
    Freezes a pipeline's denoiser and gives it the LoRA to train: the one it came with, a given one, or the default.

    Args:
        pipeline (`DiffusionPipeline`):
            Pipeline that holds the denoiser.
        denoiser (`ModelMixin`):
            Its UNet or transformer.
        peft_config (`LoraConfig`, *optional*):
            LoRA to begin; without `target_modules` it takes those of the default.
        default (`LoraConfig`):
            What to begin with otherwise.

    Returns:
        `tuple[DiffusionPeftModel, bool]`: the model to train, and whether it continues a LoRA.

    Raises:
        TypeError, ValueError: As [`check_lora`].
    """
    name = check_lora(pipeline, denoiser, peft_config)
    if name is not None:
        peft_config, weights = _take_lora(denoiser, name)
    peft_config = copy(peft_config or default)  # PEFT fills in fields
    if peft_config.target_modules is None:
        peft_config.target_modules = default.target_modules
    policy = DiffusionPeftModel(denoiser, peft_config, adapter_name=POLICY)  # freezes all but the LoRA
    if name is not None:
        set_peft_model_state_dict(policy, {f"base_model.model.{key}": value for key, value in weights.items()}, POLICY)
    return policy, name is not None


def add_frozen_copy(policy: DiffusionPeftModel):
    """Adds a frozen copy of the policy's adapter as the reference."""
    policy.add_adapter(REFERENCE, policy.peft_config[POLICY])
    weights = get_peft_model_state_dict(policy, adapter_name=POLICY)
    set_peft_model_state_dict(policy, weights, REFERENCE)
    policy.set_adapter(POLICY)
    policy.set_requires_grad(REFERENCE, False)


@contextmanager
def as_reference(policy: DiffusionPeftModel, adapter: str | None) -> Iterator[None]:
    """Within it the policy's own model is the reference: with an adapter of it, or with none (`None`)."""
    if adapter is None:
        with policy.disable_adapter():
            yield
        return
    policy.set_adapter(adapter, inference_mode=True)
    try:
        yield
    finally:
        policy.set_adapter(POLICY)
