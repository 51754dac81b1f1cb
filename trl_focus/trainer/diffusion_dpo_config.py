# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from diffusers.models.attention_dispatch import AttentionBackendName
from transformers.utils import is_torch_bf16_gpu_available

from .._compat import _BaseConfig
from ..losses import LOSSES


MAX_MODE_SCALE = 2 / (math.pi - 2)  # above it, as below -1, levels lose their order, and in the end leave [0, 1]


def _one_of(name: str, value: Any, allowed: tuple):
    if value not in allowed:
        raise ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")


def _without_tokens(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: f"<{key.upper()}>" if key.endswith("token") and isinstance(inner, str) else _without_tokens(inner)
        for key, inner in value.items()
    }


@dataclass(repr=False)  # its own would show the token
class DiffusionDPOConfig(_BaseConfig):
    r"""
    Configuration class for the [`DiffusionDPOTrainer`].

    This class includes only the parameters that are specific to Diffusion-DPO training. For a full list of training
    arguments, please refer to the [`~transformers.TrainingArguments`] documentation.

    Parameters:
        > Parameters that control the model and the reference

        model_init_kwargs (`dict[str, Any]` or `str`, *optional*):
            Keyword arguments for `DiffusionPipeline.from_pretrained`, used when the `model` argument of the trainer is a
            string. `dtype` defaults to the dtype of mixed precision.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to disable dropout in the denoiser, that of LoRA included.
        reference (`str`, *optional*):
            What the policy is held against: `"adapter_off"` (the model with its LoRA off: no second copy),
            `"initial_adapter"` (a frozen copy of the LoRA that the pipeline came with) or `"model"` (the `ref_model`
            given to the trainer). Defaults to `"model"` if a `ref_model` is given, else to `"adapter_off"`. Saved with
            checkpoints, and restored on resume.
        precompute_ref_errors (`int`, *optional*, defaults to `0`):
            Number of draws of noise and noise level (crop, flip and dropped prompt included) of each row for which the
            reference's errors are computed before training, so that steps need no reference pass; epochs take the draws in
            turn. 0 computes them in each step. Needs `encode_once`.
        one_forward (`bool`, *optional*, defaults to `True`):
            Whether chosen and rejected images go through the denoiser together. One after the other needs less memory and half
            a forward more, since what the first keeps for the backward pass is computed again; gradients are the same.
        attention_backend (`str`, *optional*):
            What computes attention, by diffusers' names, such as `"flash"` or `"_native_efficient"`. Defaults to the model's own,
            on a GPU without cuDNN's kernel, whose gradients may be NaN. For transformers whose attention diffusers lets
            choose (not Stable Diffusion's).
        channels_last (`bool`, *optional*, defaults to `False`):
            Whether the weights of a UNet's convolutions are laid out with channels last, as tensor cores read them.
        offload_blocks (`bool`, *optional*, defaults to `False`):
            Whether the frozen weights of the denoiser's blocks rest in host memory, and are on the device for one block at a
            time. Changes no result; each pass waits for its weights. Needs torch 2.8, and does not go with quantized weights,
            `torch_compile`, FSDP or DeepSpeed.
        guidance_scale (`float`, *optional*):
            Guidance that a guidance-distilled denoiser (such as FLUX.2 dev) is told in training. Defaults to the
            pipeline's own default. Other models ignore it: training has no classifier-free guidance.

        > Parameters that control the data

        resolution (`int`, *optional*):
            Pairs are trained at an area of `resolution` squared pixels, each at its own aspect ratio. Defaults to the
            side of the image that the pipeline makes by default.
        reference_resolution (`int`, *optional*):
            Reference images larger than this squared are shrunk. Defaults to the pipeline's own limit.
        reference_positions (`str`, *optional*):
            Gives references to a model whose pipeline takes none (FLUX.1), and says where they stand: `"diagonal"`, each
            beginning where the image before it ends, as in UNO. The LoRA is then sampled with [`sample_with_references`].
        encode_prompt_kwargs (`dict[str, Any]` or `str`, *optional*):
            Keyword arguments for the pipeline's own `encode_prompt`, such as `max_sequence_length`.
        crop (`str`, *optional*, defaults to `"none"`):
            `"none"` resizes whole images; `"center"` and `"random"` cut them to the target's aspect ratio. A pair's images
            and masks share one crop.
        random_flip (`bool`, *optional*, defaults to `False`):
            Whether to mirror half of the pairs in training; references are never mirrored.
        caption_dropout (`float`, *optional*, defaults to `0.0`):
            Probability in [0, 1] of training a pair with an empty prompt.
        ties (`str`, *optional*, defaults to `"error"`):
            Pairs whose two images are the same: `"error"` refuses the data, `"drop"` leaves them out.
        dataset_num_proc (`int`, *optional*):
            Number of processes that check the data before training.
        encode_once (`bool`, *optional*, defaults to `True`):
            Whether prompts, images and references are encoded before training, into files that later runs find again, so
            that the encoders need not be on the device beside the denoiser. Streams, and rows of a `data_collator` of your
            own, are encoded in each step.
        prepared (`str`, *optional*):
            Dataset on the Hub that `trl-focus prepare --push_to` made: what of it fits is downloaded rather than encoded again.
        encode_variants (`int`, *optional*, defaults to `4`):
            Crops and flips of each row that are encoded, at least 1, where they are random: epochs take them in turn.

        > Parameters that control the noise

        weighting_scheme (`str`, *optional*, defaults to `"none"`):
            Density of the noise levels in training, by diffusers' names: `"none"` (uniform), `"logit_normal"` or `"mode"`.
        logit_mean (`float`, *optional*, defaults to `0.0`):
            Mean of `"logit_normal"`; above 0 draws noisier levels.
        logit_std (`float`, *optional*, defaults to `1.0`):
            Standard deviation of `"logit_normal"`, above 0.
        mode_scale (`float`, *optional*, defaults to `1.29`):
            Scale of `"mode"`, between -1 and 1.75; above 0 favours levels in the middle.
        sampling_steps (`int`, *optional*):
            Trains at no other timesteps than those of a sampling in so many steps: for UNets distilled to few steps
            (SDXL-Turbo: 4), which know no others.
        eval_seed (`int`, *optional*, defaults to `0`):
            Evaluation draws the noise and the level of a row from this seed (at least 0) and the row's index alone.

        > Parameters that control the loss

        beta (`float`, *optional*, defaults to `2000.0`):
            How strongly the policy is tied to the reference, above 0. Multiplies half the difference of mean squared
            errors: the convention of Diffusion-DPO's own code (`beta_dpo`) and of diffusers' SDXL script. `docs/beta.md`
            converts from others.
        loss_type (`list[str]`, *optional*, defaults to `["sigmoid"]`):
            Losses to add up, out of `"sigmoid"`, `"robust"`, `"hinge"`, `"ipo"`, `"sft"` and `"anchor"`, which ties what the
            policy predicts to what the reference does (in FocusDPO outside of the subjects), so that it does not drift.
        loss_weights (`list[float]`, *optional*):
            One weight per loss. Defaults to 1 for each. `"sft"` and `"anchor"` are in units of the sigmoid loss's slope at
            the start (`beta / 4` per unit of squared error), so that a weight of 1 counts; an anchor needs less, such as 0.04.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            Probability in [0, 0.5) that a label is flipped, for `"robust"`.
        rejected_error_bound (`float`, *optional*):
            Bound on how far the error of a rejected image may rise above the reference's (in units of mean squared
            error, such as 0.01) before it stops counting. Keeps the policy from ruining images.
        target_gradient_factor (`float`, *optional*):
            If set, beta moves so that the mean of `sigmoid(-inside)` stays near this value, in (0, 0.5). For `"sigmoid"`
            and `"robust"` (with or without `"sft"` and `"anchor"`).
        beta_min (`float`, *optional*):
            Lower bound of a moving beta. Defaults to `beta / 10`.
        beta_max (`float`, *optional*):
            Upper bound of a moving beta. Defaults to `beta * 10`.
        beta_warmup_steps (`int`, *optional*, defaults to `50`):
            Updates before a moving beta moves.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `logging_steps`: Defaults to `10` instead of `500`.
    > - `gradient_checkpointing`: Defaults to `True` instead of `False`.
    > - `bf16`: Defaults to `True` where the device supports it and `fp16` is not set.
    > - `learning_rate`: Defaults to `1e-5` instead of `5e-5`.
    > - `logging_nan_inf_filter`: Defaults to `False` instead of `True`: it would hide a loss that is not finite.
    > - `ddp_find_unused_parameters`: Defaults to `False`: every LoRA weight takes part in every step.
    """

    _VALID_DICT_FIELDS = _BaseConfig._VALID_DICT_FIELDS + ["model_init_kwargs", "encode_prompt_kwargs"]

    # Parameters whose default values are overridden from TrainingArguments
    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Whether to hide losses that are not finite from the log. Off, since training stops at them."
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Whether DDP looks for unused parameters. Every LoRA weight takes part in every step."},
    )

    # Parameters that control the model and the reference
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keyword arguments for `DiffusionPipeline.from_pretrained`, used when the `model` argument of the "
            "trainer is a string. `dtype` defaults to the dtype of mixed precision."
        },
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Whether to disable dropout in the denoiser, that of LoRA included."}
    )
    reference: str | None = field(
        default=None,
        metadata={
            "help": "What the policy is held against: 'adapter_off' (the model with its LoRA off: no second copy), "
            "'initial_adapter' (a frozen copy of the LoRA that the pipeline came with) or 'model' (the `ref_model` given "
            "to the trainer). Defaults to 'model' if a `ref_model` is given, else to 'adapter_off'. Saved with "
            "checkpoints, and restored on resume.",
            "choices": ["adapter_off", "initial_adapter", "model"],
        },
    )
    precompute_ref_errors: int = field(
        default=0,
        metadata={
            "help": "Number of draws of noise and noise level (crop, flip and dropped prompt included) of each row for which "
            "the reference's errors are computed before training, so that steps need no reference pass; epochs take the "
            "draws in turn. 0 computes them in each step. Needs `encode_once`."
        },
    )
    one_forward: bool = field(
        default=True,
        metadata={
            "help": "Whether chosen and rejected images go through the denoiser together. One after the other needs less "
            "memory and half a forward more, since what the first keeps for the backward pass is computed again; gradients are "
            "the same."
        },
    )
    attention_backend: str | None = field(
        default=None,
        metadata={
            "help": "What computes attention, by diffusers' names, such as 'flash' or '_native_efficient'. Defaults to the "
            "model's own, on a GPU without cuDNN's kernel, whose gradients may be NaN. For transformers whose attention "
            "diffusers lets choose (not Stable Diffusion's)."
        },
    )
    channels_last: bool = field(
        default=False,
        metadata={
            "help": "Whether the weights of a UNet's convolutions are laid out with channels last, as tensor cores read them."
        },
    )
    offload_blocks: bool = field(
        default=False,
        metadata={
            "help": "Whether the frozen weights of the denoiser's blocks rest in host memory, and are on the device for one "
            "block at a time. Changes no result; each pass waits for its weights. Needs torch 2.8, and does not go with "
            "quantized weights, `torch_compile`, FSDP or DeepSpeed."
        },
    )
    guidance_scale: float | None = field(
        default=None,
        metadata={
            "help": "Guidance that a guidance-distilled denoiser (such as FLUX.2 dev) is told in training. Defaults to "
            "the pipeline's own default. Other models ignore it: training has no classifier-free guidance."
        },
    )

    # Parameters that control the data
    resolution: int | None = field(
        default=None,
        metadata={
            "help": "Pairs are trained at an area of `resolution` squared pixels, each at its own aspect ratio. Defaults "
            "to the side of the image that the pipeline makes by default."
        },
    )
    reference_resolution: int | None = field(
        default=None,
        metadata={
            "help": "Reference images larger than this squared are shrunk. Defaults to the pipeline's own limit."
        },
    )
    reference_positions: str | None = field(
        default=None,
        metadata={
            "help": "Gives references to a model whose pipeline takes none (FLUX.1), and says where they stand: 'diagonal', "
            "each beginning where the image before it ends, as in UNO. The LoRA is then sampled with "
            "`sample_with_references`.",
            "choices": ["diagonal"],
        },
    )
    encode_prompt_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments for the pipeline's own `encode_prompt`, such as `max_sequence_length`."},
    )
    crop: str = field(
        default="none",
        metadata={
            "help": "'none' resizes whole images; 'center' and 'random' cut them to the target's aspect ratio. A pair's "
            "images and masks share one crop.",
            "choices": ["none", "center", "random"],
        },
    )
    random_flip: bool = field(
        default=False,
        metadata={"help": "Whether to mirror half of the pairs in training; references are never mirrored."},
    )
    caption_dropout: float = field(
        default=0.0, metadata={"help": "Probability in [0, 1] of training a pair with an empty prompt."}
    )
    ties: str = field(
        default="error",
        metadata={
            "help": "Pairs whose two images are the same: 'error' refuses the data, 'drop' leaves them out.",
            "choices": ["error", "drop"],
        },
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Number of processes that check the data before training."}
    )
    encode_once: bool = field(
        default=True,
        metadata={
            "help": "Whether prompts, images and references are encoded before training, into files that later runs find "
            "again, so that the encoders need not be on the device beside the denoiser. Streams, and rows of a "
            "`data_collator` of your own, are encoded in each step."
        },
    )
    prepared: str | None = field(
        default=None,
        metadata={
            "help": "Dataset on the Hub that `trl-focus prepare --push_to` made: what of it fits is downloaded rather than "
            "encoded again."
        },
    )
    encode_variants: int = field(
        default=4,
        metadata={
            "help": "Crops and flips of each row that are encoded, at least 1, where they are random: epochs take them in "
            "turn."
        },
    )

    # Parameters that control the noise
    weighting_scheme: str = field(
        default="none",
        metadata={
            "help": "Density of the noise levels in training, by diffusers' names: 'none' (uniform), 'logit_normal' or "
            "'mode'.",
            "choices": ["none", "logit_normal", "mode"],
        },
    )
    logit_mean: float = field(default=0.0, metadata={"help": "Mean of 'logit_normal'; above 0 draws noisier levels."})
    logit_std: float = field(default=1.0, metadata={"help": "Standard deviation of 'logit_normal', above 0."})
    mode_scale: float = field(
        default=1.29, metadata={"help": "Scale of 'mode', between -1 and 1.75; above 0 favours levels in the middle."}
    )
    sampling_steps: int | None = field(
        default=None,
        metadata={
            "help": "Trains at no other timesteps than those of a sampling in so many steps: for UNets distilled to few steps "
            "(SDXL-Turbo: 4), which know no others."
        },
    )
    eval_seed: int = field(
        default=0,
        metadata={
            "help": "Evaluation draws the noise and the level of a row from this seed (at least 0) and the row's index "
            "alone."
        },
    )

    # Parameters that control the loss
    beta: float = field(
        default=2000.0,
        metadata={
            "help": "How strongly the policy is tied to the reference, above 0. Multiplies half the difference of mean "
            "squared errors: the convention of Diffusion-DPO's own code and of diffusers' SDXL script."
        },
    )
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={
            "help": "Losses to add up, out of 'sigmoid', 'robust', 'hinge', 'ipo', 'sft' and 'anchor', which ties what the "
            "policy predicts to what the reference does (in FocusDPO outside of the subjects)."
        },
    )
    loss_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "One weight per loss. Defaults to 1 for each. 'sft' and 'anchor' are in units of the sigmoid loss's "
            "slope at the start (`beta / 4` per unit of squared error), so that a weight of 1 counts; an anchor needs less, "
            "such as 0.04."
        },
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Probability in [0, 0.5) that a label is flipped, for 'robust'."}
    )
    rejected_error_bound: float | None = field(
        default=None,
        metadata={
            "help": "Bound on how far the error of a rejected image may rise above the reference's (in units of mean "
            "squared error, such as 0.01) before it stops counting. Keeps the policy from ruining images."
        },
    )
    target_gradient_factor: float | None = field(
        default=None,
        metadata={
            "help": "If set, beta moves so that the mean of `sigmoid(-inside)` stays near this value, in (0, 0.5). For "
            "'sigmoid' and 'robust' (with or without 'sft' and 'anchor')."
        },
    )
    beta_min: float | None = field(
        default=None, metadata={"help": "Lower bound of a moving beta. Defaults to `beta / 10`."}
    )
    beta_max: float | None = field(
        default=None, metadata={"help": "Upper bound of a moving beta. Defaults to `beta * 10`."}
    )
    beta_warmup_steps: int = field(default=50, metadata={"help": "Updates before a moving beta moves."})

    def __post_init__(self):
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if self.learning_rate is None:
            raise ValueError("`learning_rate` is None; leave it out for the default, or give a number.")
        super().__post_init__()
        for name in ("model_init_kwargs", "encode_prompt_kwargs"):
            if isinstance(value := getattr(self, name), str):
                raise ValueError(f"`{name}` is {value!r}; give a dictionary, or one as JSON: '{{...}}'.")
        self._check_loss()
        if self.offload_blocks:
            self._check_offload()
        _one_of("reference", self.reference, (None, "adapter_off", "initial_adapter", "model"))
        _one_of("attention_backend", self.attention_backend, (None, *(name.value for name in AttentionBackendName)))
        _one_of("reference_positions", self.reference_positions, (None, "diagonal"))
        _one_of("crop", self.crop, ("none", "center", "random"))
        _one_of("ties", self.ties, ("error", "drop"))
        _one_of("weighting_scheme", self.weighting_scheme, ("none", "logit_normal", "mode"))
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"`caption_dropout` is {self.caption_dropout}; it is a probability, between 0 and 1.")
        if self.precompute_ref_errors < 0 or (self.precompute_ref_errors and not self.encode_once):
            raise ValueError(
                f"`precompute_ref_errors` is {self.precompute_ref_errors} and `encode_once` {self.encode_once}; it is a number of "
                "draws of each row, at least 0, and above 0 goes with `encode_once=True`."
            )
        for name in ("resolution", "reference_resolution", "logit_std", "sampling_steps", "encode_variants"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"`{name}` is {value}; it must be above 0.")
        if not -1 <= self.mode_scale <= MAX_MODE_SCALE:
            raise ValueError(
                f"`mode_scale` is {self.mode_scale}; it must lie between -1 and {MAX_MODE_SCALE:.2f}, where 'mode' is a density."
            )
        if self.eval_seed < 0:
            raise ValueError(f"`eval_seed` is {self.eval_seed}; it must be at least 0.")
        if self.label_smoothing_factor:
            raise ValueError(
                "`label_smoothing_factor` smooths classes, which pairs have none of. Use `label_smoothing` with the 'robust' "
                "loss."
            )
        if self.neftune_noise_alpha is not None:
            raise ValueError("`neftune_noise_alpha` adds noise to token embeddings, which a denoiser has none of.")
        if self.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            raise ValueError(
                f"`train_sampling_strategy` is {self.train_sampling_strategy!r}; pairs are always batched by layout. "
                "Use 'random' or 'sequential'."
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings, as trackers log them: without tokens, those for loading the model included."""
        return _without_tokens(super().to_dict())

    def __repr__(self):
        lines = "".join(f"{name}={value},\n" for name, value in sorted(self.to_dict().items()))
        return f"{type(self).__name__}(\n{lines})"

    __str__ = __repr__

    def _check_loss(self):
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        if isinstance(self.loss_weights, int | float):
            self.loss_weights = [self.loss_weights]
        if not 0 < self.beta < math.inf:
            raise ValueError(f"`beta` is {self.beta}; it must be finite and above 0 (2000 is a good start).")
        if not self.loss_type:
            raise ValueError(f"`loss_type` is empty; name at least one of {', '.join(LOSSES)}.")
        for name in self.loss_type:
            _one_of("loss_type", name, tuple(LOSSES))
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"`loss_weights` has {len(self.loss_weights)} entries and `loss_type` {len(self.loss_type)}; give one "
                "weight per loss."
            )
        if not all(0 <= weight < math.inf for weight in self.loss_weights or []):
            raise ValueError(f"`loss_weights` is {self.loss_weights}; every weight must be finite and at least 0.")
        if {*self.loss_type} == {"anchor"}:
            raise ValueError("`loss_type` is 'anchor' alone, which asks for no change at all: add 'sigmoid', say.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"`label_smoothing` is {self.label_smoothing}; it must be at least 0 and below 0.5.")
        if "anchor" in self.loss_type and self.precompute_ref_errors:
            raise ValueError(
                "`loss_type='anchor'` compares what policy and reference predict, and `precompute_ref_errors` keeps the "
                "reference's errors alone: leave out one of both."
            )
        if self.label_smoothing and "robust" not in self.loss_type:
            raise ValueError(
                "`label_smoothing` is read by the 'robust' loss alone; add it to `loss_type`, or leave it 0."
            )
        if self.rejected_error_bound is not None and not self.rejected_error_bound >= 0:
            raise ValueError(f"`rejected_error_bound` is {self.rejected_error_bound}; it must be at least 0.")
        if self.target_gradient_factor is not None:
            self._check_moving_beta()
        elif (self.beta_min, self.beta_max) != (None, None):
            raise ValueError(
                "`beta_min` and `beta_max` bound a moving beta; set `target_gradient_factor`, or leave them out."
            )

    def _check_offload(self):
        others = {
            "torch_compile": self.torch_compile,
            "FSDP": self.fsdp_plugin_args or parse_flag_from_env("ACCELERATE_USE_FSDP"),
            "DeepSpeed": self.deepspeed_plugin,
        }
        if found := [name for name, is_on in others.items() if is_on]:
            raise ValueError(
                f"`offload_blocks` does not go with {' and '.join(found)}, which keep hold of weights that it moves. Leave out "
                "one of both; FSDP and DeepSpeed have an offload of their own."
            )
        if not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):
            raise ValueError(f"`offload_blocks` needs torch 2.8 or newer, and this is {torch.__version__}.")

    def _check_moving_beta(self):
        if not 0 < self.target_gradient_factor < 0.5:
            raise ValueError(
                f"`target_gradient_factor` is {self.target_gradient_factor}; it must lie between 0 and 0.5, the factor "
                "where training starts."
            )
        if not {"sigmoid", "robust"} & {*self.loss_type} or {"hinge", "ipo"} & {*self.loss_type}:
            raise ValueError(
                f"`target_gradient_factor` has no meaning for `loss_type={self.loss_type}`: the factor is the slope of "
                "'sigmoid' and 'robust'. Use one of these, or leave it out."
            )
        self.beta_min = self.beta / 10 if self.beta_min is None else self.beta_min
        self.beta_max = self.beta * 10 if self.beta_max is None else self.beta_max
        if not 0 < self.beta_min <= self.beta <= self.beta_max:
            raise ValueError(
                f"`beta` ({self.beta}) must lie between `beta_min` ({self.beta_min}) and `beta_max` ({self.beta_max}), "
                "all above 0."
            )
        if self.beta_warmup_steps < 0:
            raise ValueError(f"`beta_warmup_steps` is {self.beta_warmup_steps}; it must be at least 0.")
