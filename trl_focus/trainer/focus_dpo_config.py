# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from dataclasses import dataclass, field

from ..focus.maps import FOCUS_MAPS
from .diffusion_dpo_config import DiffusionDPOConfig, _one_of


@dataclass
class FocusDPOConfig(DiffusionDPOConfig):
    r"""
    Configuration class for the [`FocusDPOTrainer`].

    This class includes only the parameters that are specific to focus maps. For the others, please refer to
    [`DiffusionDPOConfig`] and [`~transformers.TrainingArguments`].

    Parameters:
        focus_map (`str`, *optional*, defaults to `"mask"`):
            How much each cell of an image weighs: `"uniform"` (1 everywhere: Diffusion-DPO) or `"mask"`
            (`background_weight`, plus `prior_weight` on the subjects; the data must have masks). For a map of your own, give
            the trainer a callable.
        background_weight (`float`, *optional*, defaults to `0.1`):
            Weight of every cell, at least 0. At 0 nothing holds the background in place.
        prior_weight (`float`, *optional*, defaults to `0.9`):
            Weight that a subject's mask adds, at least 0. Weights are not normalised: with `background_weight +
            prior_weight = 1`, `beta` means on a subject's cell what it means in Diffusion-DPO.
        focus_sft (`bool`, *optional*, defaults to `False`):
            Whether the map also weights the `"sft"` loss.
    """

    focus_map: str = field(
        default="mask",
        metadata={
            "help": "How much each cell of an image weighs: 'uniform' (1 everywhere: Diffusion-DPO) or 'mask' "
            "(`background_weight`, plus `prior_weight` on the subjects; the data must have masks).",
            "choices": [*FOCUS_MAPS],
        },
    )
    background_weight: float = field(
        default=0.1,
        metadata={"help": "Weight of every cell, at least 0. At 0 nothing holds the background in place."},
    )
    prior_weight: float = field(
        default=0.9,
        metadata={
            "help": "Weight that a subject's mask adds, at least 0. Weights are not normalised: with `background_weight "
            "+ prior_weight = 1`, `beta` means on a subject's cell what it means in Diffusion-DPO."
        },
    )
    focus_sft: bool = field(default=False, metadata={"help": "Whether the map also weights the 'sft' loss."})

    def __post_init__(self):
        super().__post_init__()
        _one_of("focus_map", self.focus_map, tuple(FOCUS_MAPS))
        for name in ("background_weight", "prior_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 0.")
        if not self.background_weight + self.prior_weight > 0:
            raise ValueError("`background_weight` and `prior_weight` are both 0: nothing would be trained.")
