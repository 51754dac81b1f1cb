# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import math
from dataclasses import astuple, dataclass, field

from ..focus.allocation import GATES, NORMALIZATIONS, SUBJECT_GATES, FocusWeights
from ..focus.maps import FOCUS_MAPS, MATCHINGS, PRIORS
from .diffusion_dpo_config import DiffusionDPOConfig, _one_of


@dataclass(repr=False)
class FocusDPOConfig(DiffusionDPOConfig):
    r"""
    Configuration class for the [`FocusDPOTrainer`].

    This class includes only the parameters that are specific to focus maps. For the others, please refer to
    [`DiffusionDPOConfig`] and [`~transformers.TrainingArguments`].

    Parameters:
        > Parameters that choose the map

        focus_map (`str`, *optional*, defaults to `"focus"`):
            How much each cell of an image weighs: `"uniform"` (1 everywhere: Diffusion-DPO), `"mask"` (`background_weight`,
            plus `prior_weight` on the subjects), `"patch"` (as `"mask"`, on chosen images as far as the subject matches its
            reference, on rejected ones as far as it does not) or `"focus"` (FocusDPO: all the parts below). For a map of your
            own, give the trainer a callable.
        focus_prior (`str`, *optional*, defaults to `"masks"`):
            Where the subjects are: in the `"masks"` of the data, which every row must have; where an image is most similar to
            the references, `"similarity"`; or `"everywhere"`. Without masks, backgrounds weigh more and leakage is found less
            well (`"similarity"`) or not at all (`"everywhere"`).
        focus_matching (`str`, *optional*):
            How similarity to the references says which cells already show their subject: `"graded"`, by degree; `"top_k"`,
            by rank, as in the paper; or `"none"`. Defaults to `"graded"` where the model has reference tokens, else to
            `"none"`.
        focus_blocks (`list[str]`, *optional*):
            Blocks of the denoiser whose hidden states are compared, such as `["single_transformer_blocks.4"]`. Defaults to
            the family's.
        focus_normalization (`str`, *optional*, defaults to `"none"`):
            `"none"`: weights stay as composed, and `beta` means on a cell of weight 1 what it means in Diffusion-DPO;
            `"mean"`: their mean is 1 on each image; `"subject"`: all subjects of an image carry the same total.
        focus_sft (`bool`, *optional*, defaults to `False`):
            Whether the map also weights the `"sft"` loss.

        > Parameters that weigh the parts, each at least 0

        background_weight (`float`, *optional*, defaults to `0.03`):
            Weight of every cell. At 0 nothing but an anchor (`loss_type`) holds the background in place.
        prior_weight (`float`, *optional*):
            Weight that a subject adds. Defaults to what is left to 1: with the other defaults 0.97 in `"mask"` and
            `"patch"`, and 0.47 in `"focus"`.
        structure_weight (`float`, *optional*, defaults to `0.2`):
            Weight that `"focus"` adds where a subject does not match its reference yet.
        leak_weight (`float`, *optional*, defaults to `0.3`):
            Weight that `"focus"` adds where another subject's reference is found in a subject.
        detail_weight (`float`, *optional*, defaults to `0.2`):
            Weight that `"focus"` adds on a subject's detail, in full without noise.
        detail_gate (`str`, *optional*, defaults to `"level"`):
            Detail counts where the noise `"level"` is at most `detail_threshold`, or where the `"alignment"` of an image with
            its references is at least that.
        detail_threshold (`float`, *optional*, defaults to `0.5`):
            Threshold of the gate, in [0, 1].
        subject_gate (`str`, *optional*, defaults to `"none"`):
            Which subjects of a pair `"focus"` weighs: all of them alike (`"none"`), or each as far as the chosen image shows
            its reference (`"shown"`), relative to the subject shown best. Where one subject of a pair is beside the point,
            it then weighs little. It is measured once, before training, for which rows have to be encoded once.
    """

    focus_map: str = field(
        default="focus",
        metadata={
            "help": "How much each cell of an image weighs: 'uniform' (1 everywhere: Diffusion-DPO), 'mask' "
            "(`background_weight`, plus `prior_weight` on the subjects), 'patch' (as 'mask', on chosen images as far as the "
            "subject matches its reference, on rejected ones as far as it does not) or 'focus' (FocusDPO).",
            "choices": [*FOCUS_MAPS],
        },
    )
    focus_prior: str = field(
        default="masks",
        metadata={
            "help": "Where the subjects are: in the 'masks' of the data, which every row must have; where an image is most "
            "similar to the references, 'similarity'; or 'everywhere'.",
            "choices": [*PRIORS],
        },
    )
    focus_matching: str | None = field(
        default=None,
        metadata={
            "help": "How similarity to the references says which cells already show their subject: 'graded', by degree; "
            "'top_k', by rank, as in the paper; or 'none'. Defaults to 'graded' where the model has reference tokens, else "
            "to 'none'.",
            "choices": [*MATCHINGS],
        },
    )
    focus_blocks: list[str] | None = field(
        default=None,
        metadata={"help": "Blocks of the denoiser whose hidden states are compared. Defaults to the family's."},
    )
    focus_normalization: str = field(
        default="none",
        metadata={
            "help": "'none': weights stay as composed; 'mean': their mean is 1 on each image; 'subject': all subjects of an "
            "image carry the same total.",
            "choices": [*NORMALIZATIONS],
        },
    )
    focus_sft: bool = field(default=False, metadata={"help": "Whether the map also weights the 'sft' loss."})
    background_weight: float = field(
        default=0.03,
        metadata={
            "help": "Weight of every cell, at least 0. At 0 nothing but an anchor (`loss_type`) holds the background in place."
        },
    )
    prior_weight: float | None = field(
        default=None,
        metadata={"help": "Weight that a subject adds, at least 0. Defaults to what the others leave to 1."},
    )
    structure_weight: float = field(
        default=0.2,
        metadata={"help": "Weight that 'focus' adds where a subject does not match its reference yet, at least 0."},
    )
    leak_weight: float = field(
        default=0.3,
        metadata={
            "help": "Weight that 'focus' adds where another subject's reference is found in a subject, at least 0."
        },
    )
    detail_weight: float = field(
        default=0.2,
        metadata={"help": "Weight that 'focus' adds on a subject's detail, in full without noise, at least 0."},
    )
    detail_gate: str = field(
        default="level",
        metadata={
            "help": "Detail counts where the noise 'level' is at most `detail_threshold`, or where the 'alignment' of an "
            "image with its references is at least that.",
            "choices": [*GATES],
        },
    )
    detail_threshold: float = field(default=0.5, metadata={"help": "Threshold of the gate, in [0, 1]."})
    subject_gate: str = field(
        default="none",
        metadata={
            "help": "Which subjects of a pair 'focus' weighs: 'shown', each as far as the chosen image shows its reference, "
            "relative to the subject shown best, which is measured before training; or 'none', all of them alike.",
            "choices": [*SUBJECT_GATES],
        },
    )

    def __post_init__(self):
        super().__post_init__()
        _one_of("focus_map", self.focus_map, tuple(FOCUS_MAPS))
        _one_of("focus_prior", self.focus_prior, PRIORS)
        _one_of("focus_normalization", self.focus_normalization, NORMALIZATIONS)
        _one_of("detail_gate", self.detail_gate, GATES)
        _one_of("subject_gate", self.subject_gate, SUBJECT_GATES)
        if self.focus_matching is not None:
            _one_of("focus_matching", self.focus_matching, MATCHINGS)
        if isinstance(self.focus_blocks, str) or self.focus_blocks == []:
            raise ValueError(f"`focus_blocks` is {self.focus_blocks!r}; it must be a list of names of blocks.")
        if not 0 <= self.detail_threshold <= 1:
            raise ValueError(f"`detail_threshold` is {self.detail_threshold}; it must lie in [0, 1].")
        for name in ("background", "prior", "structure", "leak", "detail"):
            value = getattr(self, f"{name}_weight")
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"`{name}_weight` is {value}; it must be finite and at least 0.")
        if self.focus_normalization == "subject" and self.focus_prior != "masks":
            raise ValueError(
                "`focus_normalization='subject'` balances the subjects by their masks, and `focus_prior` is "
                f"{self.focus_prior!r}: choose 'masks', or another normalization."
            )
        if "anchor" in self.loss_type and self.focus_prior == "everywhere":
            raise ValueError(
                "`loss_type='anchor'` holds what is outside of the subjects in place, and with `focus_prior='everywhere'` nothing "
                "is: leave out one of both."
            )
        if self.subject_gate == "shown" and not self.encode_once:
            raise ValueError(
                "`subject_gate='shown'` is measured before training, and `encode_once` is False: choose 'none', or encode rows "
                "once."
            )
        self.check_matching()
        if self.prior_weight is None and self._left_for_prior() < 0:
            raise ValueError(
                f"`background_weight` and the weights of the parts of {self.focus_map!r} leave {self._left_for_prior():.3g} "
                "to 1 for `prior_weight`: set it yourself, or lower them."
            )
        if sum(astuple(self.focus_weights)) == 0:
            raise ValueError("All weights are 0: nothing would be trained.")

    def check_matching(self):
        """
        Raises:
            ValueError: If the map needs a matching, and there is none.
        """
        if self.focus_matching == "none" and self.focus_map == "patch":
            raise ValueError(
                "`focus_map='patch'` is made of a matching with references, and `focus_matching` is 'none'."
            )
        if self.focus_matching == "none" and self.focus_map == "focus" and self.detail_gate == "alignment":
            raise ValueError(
                "`detail_gate='alignment'` asks how far images match their references, and `focus_matching` is 'none': "
                "choose 'level'."
            )
        if self.focus_matching == "none" and self.subject_gate == "shown":
            raise ValueError(
                "`subject_gate='shown'` asks how far images show their references, and `focus_matching` is "
                "'none': choose 'none' for both."
            )

    @property
    def focus_weights(self) -> FocusWeights:
        """Weight of each part in the map in force; parts that it does not have weigh 0."""
        prior = max(0, self._left_for_prior()) if self.prior_weight is None else self.prior_weight
        return FocusWeights(self.background_weight, prior, *self._part_weights())

    def _part_weights(self) -> tuple[float, float, float]:
        """Weights of structure, leak and detail."""
        if self.focus_map != "focus":
            return 0.0, 0.0, 0.0
        matched = self.focus_matching != "none"
        return self.structure_weight * matched, self.leak_weight * matched, self.detail_weight

    def _left_for_prior(self) -> float:
        structure, leak, detail = self._part_weights()
        return round(1 - self.background_weight - max(structure, leak) - detail, 9)
