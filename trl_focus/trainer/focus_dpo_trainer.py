# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import textwrap
from collections.abc import Callable

import torch

from ..callbacks import FocusMapCallback
from ..data.preparation import prepare_preferences
from ..focus.maps import FOCUS_MAPS, NEEDS_MASKS, FocusContext, prior
from .diffusion_dpo_trainer import DiffusionDPOTrainer
from .focus_dpo_config import FocusDPOConfig


class FocusDPOTrainer(DiffusionDPOTrainer):
    """
    Trainer for FocusDPO: Diffusion-DPO whose error is weighted by a map of each image, after [FocusDPO: Dynamic Preference
    Optimization for Multi-Subject Personalized Image Generation via Adaptive
    Focus](https://huggingface.co/papers/2509.01181). With `W` the map of an image and `P` the number of its cells, its error
    is `E = 1/P sum_p W(p) e(p)`; all else is [`DiffusionDPOTrainer`]'s.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from trl_focus import FocusDPOConfig, FocusDPOTrainer

    >>> trainer = FocusDPOTrainer(
    ...     model="black-forest-labs/FLUX.2-klein-base-4B",
    ...     args=FocusDPOConfig(output_dir="klein-focus", resolution=512),
    ...     train_dataset=load_dataset("user/pairs-with-masks", split="train"),
    ... )
    >>> trainer.train()
    ```

    Args:
        args ([`FocusDPOConfig`], *optional*):
            Configuration; its `focus_map` names the map.
        focus_map (`Callable`, *optional*):
            A map of your own, instead of the named one: takes a [`FocusContext`] of the 2B images of a batch, returns
            weights of shape `(2B, H, W)`, finite and at least 0. No gradient flows through it.
        model, ref_model, *trainer_args, **kwargs:
            As for [`DiffusionDPOTrainer`].
    """

    _tag_names = ["trl", "focus-dpo", "diffusion-dpo"]
    _name = "FocusDPO"
    _paper = {
        "title": "FocusDPO: Dynamic Preference Optimization for Multi-Subject Personalized Image Generation via Adaptive "
        "Focus",
        "id": "2509.01181",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{jin2025focusdpo,
                title   = {{FocusDPO: Dynamic Preference Optimization for Multi-Subject Personalized Image Generation via Adaptive Focus}},
                author  = {Qiaoqiao Jin and Siming Fu and Dong She and Weinan Jia and Hualiang Wang and Mu Liu and Jidong Jiang},
                year    = 2025,
                eprint  = {arXiv:2509.01181},
            }""")
        + "\n\n"
        + DiffusionDPOTrainer._paper["citation"],
    }

    _config_class = FocusDPOConfig

    def __init__(
        self,
        model,
        ref_model=None,
        args: FocusDPOConfig | None = None,
        *trainer_args,
        focus_map: Callable[[FocusContext], torch.Tensor] | None = None,
        **kwargs,
    ):
        if focus_map is not None and not callable(focus_map):
            raise TypeError(
                f"`focus_map` must be callable, got {focus_map!r}. Name a map with `FocusDPOConfig(focus_map=...)`."
            )
        self._own_map = focus_map
        self._bad_weights: torch.Tensor | None = None  # whether any weight since the last log was unfit, on the device
        super().__init__(model, ref_model, args, *trainer_args, **kwargs)

    def _prepare_dataset(self, dataset, args):
        masks = self._own_map is None and args.focus_map in NEEDS_MASKS
        return prepare_preferences(dataset, self.layout_rule, args.ties, args.dataset_num_proc, masks)

    def focus_map(self, context: FocusContext) -> torch.Tensor:
        """Weights of shape `(B, H, W)` for the images of a context: of the map in force, before callbacks."""
        if self._own_map is not None:
            return self._own_map(context)
        return FOCUS_MAPS[self.args.focus_map](context, self.args.background_weight, self.args.prior_weight)

    @torch.no_grad()
    def cell_weights(self, batch, noised):
        masks = None
        if "chosen_masks" in batch and "rejected_masks" in batch:
            masks = torch.cat([batch["chosen_masks"], batch["rejected_masks"]])
        context = FocusContext(noised.level_B, tuple(noised.noisy_BCHW.shape[-2:]), masks)
        shape = (len(noised.level_B), *context.grid)
        maps = {"weights": _checked(self.focus_map(context), shape, "`focus_map`")}
        if masks is not None:
            maps["prior"] = prior(context)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, FocusMapCallback):
                changed = callback.on_focus_maps(
                    self.args, self.state, self.control, maps, {**batch, "level": noised.level_B}, model=self.model
                )
                for name, value in (changed or {}).items():
                    maps[name] = _checked(value, shape, f"`{type(callback).__name__}.on_focus_maps` (map {name!r})")
        weights_BHW = maps["weights"].float()
        unfit = ~(weights_BHW.isfinite() & (weights_BHW >= 0)).all()
        self._bad_weights = unfit if self._bad_weights is None else self._bad_weights | unfit
        return weights_BHW, weights_BHW if self.args.focus_sft else None

    def check_finite(self):
        """Also looks at the focus maps. See [`DiffusionDPOTrainer.check_finite`]."""
        unfit, self._bad_weights = self._bad_weights, None
        if unfit is not None and self.accelerator.reduce(unfit.float(), reduction="sum") > 0:
            raise FloatingPointError(
                "The focus map, or a callback that changed it, gave a weight that is negative or not finite. Weights must "
                "be at least 0: look at `focus_map` and at `on_focus_maps`."
            )
        super().check_finite()


def _checked(weights, shape: tuple[int, ...], source: str) -> torch.Tensor:
    if not isinstance(weights, torch.Tensor) or tuple(weights.shape) != shape:
        got = tuple(weights.shape) if isinstance(weights, torch.Tensor) else type(weights).__name__
        raise ValueError(
            f"{source} returned {got} instead of a tensor of shape {shape}: one weight per cell of the {shape[0]} images of "
            "the batch, the chosen ones first."
        )
    return weights.detach()
