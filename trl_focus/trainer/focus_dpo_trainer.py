# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import textwrap
from collections.abc import Callable
from contextlib import contextmanager
from functools import cached_property, partial

import torch

from ..callbacks import FocusMapCallback
from ..data.encoded import EncodedRows
from ..data.preparation import prepare_preferences
from ..families.tap import BlockTap
from ..focus.allocation import normalise
from ..focus.correspondence import prototypes, similarity
from ..focus.maps import FOCUS_MAPS, SHOWN_AT, FocusContext, FocusSettings, prior, required, shown, with_prior
from ..losses import mean_error
from ..noise import noised_at
from .diffusion_dpo_trainer import CellWeights, DiffusionDPOTrainer
from .focus_dpo_config import FocusDPOConfig
from .precomputed import add_shown


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
            weights of shape `(2B, H, W)`, finite and at least 0, or a dictionary with these as `"weights"` and named parts
            beside them. No gradient flows through it. What of the context it can't do without it says with [`needs`].
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
        self._tap = None
        if "similarity" in self._needs:
            self.feature_blocks = self.args.focus_blocks or self.family.feature_blocks
            self._tap = BlockTap(self.family.denoiser, self.feature_blocks)
            if elsewhere := [name for name in self.feature_blocks if name not in self.family.image_blocks]:
                raise ValueError(
                    f"`focus_blocks` names {', '.join(map(repr, elsewhere))}, which does not see target, references and text "
                    f"together. Choose among {', '.join(self.family.image_blocks)}."
                )

    @cached_property
    def _needs(self) -> frozenset[str]:
        """What the map needs of data and model."""
        args = self.args
        able = bool(self.family.feature_blocks)
        if self._own_map is None:
            if args.focus_matching is None:
                args.focus_matching = "graded" if able else "none"
                args.check_matching()
            wanted = required(args.focus_map, self._focus_settings)
        else:
            wanted = frozenset(getattr(self._own_map, "needs", ()))
        if "anchor" in args.loss_type:
            wanted |= required("mask", self._focus_settings)  # where the subjects are
        if "similarity" in wanted and not able:
            raise ValueError(
                f"The focus map compares images with the tokens of their references, and {type(self.family).__name__} has "
                "none: set `focus_matching='none'` and `focus_prior='masks'`, or choose `focus_map='mask'`."
            )
        return wanted | {"masks"} if args.focus_normalization == "subject" else wanted

    @property
    def _focus_settings(self) -> FocusSettings:
        args = self.args
        return FocusSettings(
            args.focus_weights,
            args.focus_prior,
            args.focus_matching,
            args.detail_gate,
            args.detail_threshold,
            args.subject_gate,
        )

    def _prepare_dataset(self, dataset):
        return prepare_preferences(dataset, self.layout_rule, self.args.ties, self.args.dataset_num_proc, self._needs)

    def _found_before(self):
        return super()._found_before() or (("subject_gate", "none") if "shown" in self._needs else None)

    def _precompute(self, dataset, draws, train):
        super()._precompute(dataset, draws, train)
        if "shown" in self._needs and isinstance(dataset, EncodedRows) and dataset.shown is None:
            add_shown(self, dataset, self._collator(dataset, train))

    @torch.no_grad()
    def shown(self, batch, level: float = SHOWN_AT) -> torch.Tensor:
        """
        How far images show their subjects, as the model without its LoRA sees them: see [`~trl_focus.focus.maps.shown`].

        Args:
            batch (`dict`):
                A batch of the trainer's loaders.
            level (`float`, *optional*, defaults to `0.25`):
                Noise level in [0, 1] at which the model sees the images.

        Returns:
            `torch.Tensor` of shape `(2B, S)` in [0, 1]: the chosen ones first.
        """
        x_BCHW, prompt, references = self._encode(batch)
        noised = noised_at(self.family.process, x_BCHW, batch["seed"], level)
        with self.base_policy(), self.watch(batch, noised, prompt, references) as similarities:
            self._predict(self.model, noised, prompt, references)
        grid = tuple(x_BCHW.shape[-2:])
        return shown(self._focus_context(batch, noised.level_B, grid, similarities), self._focus_settings)

    def focus_map(self, context: FocusContext) -> dict[str, torch.Tensor]:
        """Weights and named parts, each of shape `(B, H, W)`, of the map in force, before normalization and callbacks."""
        if self._own_map is None:
            return FOCUS_MAPS[self.args.focus_map](context, self._focus_settings)
        maps = self._own_map(context)
        return maps if isinstance(maps, dict) and "weights" in maps else {"weights": maps}

    @contextmanager
    def watch(self, batch, noised, prompt, references):
        """Yields the similarity of each reference with each cell, of shape `(images, R, H, W)`, one per block that is read."""
        if self._tap is None or not references:
            yield []
            return
        grid, *grids = (tuple(image.shape[-2:]) for image in (noised.noisy_BCHW, *references))
        each = len(noised.level_B) // len(batch["row"])  # both images of a pair, or one
        masks = [torch.cat([mask_Bhw.flatten(1)] * each) for mask_Bhw in batch["reference_masks"]]

        def compare(tokens_BSD: torch.Tensor) -> torch.Tensor:
            target_BSD, shown = self.family.image_tokens(tokens_BSD, prompt, grid, grids)
            return similarity(target_BSD, prototypes(shown, masks), grid)

        with self._tap.reading(compare) as similarities:
            yield similarities

    def _focus_context(self, batch, level_B: torch.Tensor, grid: tuple[int, int], similarities) -> FocusContext:
        def both(name: str) -> torch.Tensor | None:
            parts = [batch.get(f"{image}_{name}") for image in ("chosen", "rejected")]
            return None if parts[0] is None or parts[1] is None else torch.cat(parts)

        compared = {}
        if similarities:
            shares = [mask_Bhw.mean(dim=(1, 2)) for mask_Bhw in batch["reference_masks"]]
            compared = {
                "similarity_BRHW": torch.stack(similarities).mean(dim=0),
                "reference_subjects_BR": torch.cat([batch["reference_subjects"]] * 2),
                "reference_shares_BR": torch.stack(shares, dim=1).repeat(2, 1),
            }
        return FocusContext(
            level_B, grid, both("masks"), detail_BHW=both("detail"), shown_BS=batch.get("shown"), **compared
        )

    @torch.no_grad()
    def cell_weights(self, batch, noised, seen):
        grid = tuple(noised.noisy_BCHW.shape[-2:])
        similarities = [torch.cat(parts) for parts in zip(*seen, strict=True)]
        context = self._focus_context(batch, noised.level_B, grid, similarities)
        shape = (len(noised.level_B), *grid)
        maps = {name: _checked(value, shape, "`focus_map`") for name, value in self.focus_map(context).items()}
        maps["weights"] = normalise(maps["weights"], self.args.focus_normalization, context.subject_masks_BSHW)
        if "anchor" in self.args.loss_type:
            context = with_prior(context, self._focus_settings)
        if "prior" not in maps and context.subject_masks_BSHW is not None:
            maps["prior"] = prior(context)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, FocusMapCallback):
                changed = callback.on_focus_maps(
                    self.args,
                    self.state,
                    self.control,
                    maps,
                    {**batch, "level": noised.level_B},
                    model=self.model,
                    training=self.model.training,
                    pixels=partial(self.pixels, batch),
                    callbacks=self.callback_handler.callbacks,
                )
                for name, value in (changed or {}).items():
                    maps[name] = _checked(value, shape, f"`{type(callback).__name__}.on_focus_maps` (map {name!r})")
        weights_BHW = maps["weights"].float()
        unfit = ~(weights_BHW.isfinite() & (weights_BHW >= 0)).all()
        self._bad_weights = unfit if self._bad_weights is None else self._bad_weights | unfit
        outside_BHW = (1 - maps["prior"].float()).clamp(min=0) if "anchor" in self.args.loss_type else None
        return CellWeights(weights_BHW, weights_BHW if self.args.focus_sft else None, maps, outside_BHW)

    @torch.no_grad()
    def _observe(self, inputs, noised, terms, loss_B, change_BHW, weights):
        super()._observe(inputs, noised, terms, loss_B, change_BHW, weights)
        if "prior" not in weights.parts:
            return
        prior_BHW, weights_BHW = weights.parts["prior"], weights.preference_BHW
        counts_B, level_B = inputs["counts"], noised.level_B.chunk(2)[0]
        for name, share_BHW in (("inside", prior_BHW), ("outside", 1 - prior_BHW)):
            chosen_B, rejected_B = (-0.5 * terms.beta * mean_error(change_BHW, weights_BHW * share_BHW)).chunk(2)
            self._means.add(f"rewards/margins/{name}", chosen_B - rejected_B, counts_B)
            self._add_by_level(f"rewards/margins/{name}", chosen_B - rejected_B, counts_B, level_B)

        both_B = torch.cat([counts_B] * 2)
        subjects_B, total_B = prior_BHW.sum(dim=(1, 2)), weights_BHW.sum(dim=(1, 2))
        ratios = {"weight_on_subjects": ((weights_BHW * prior_BHW).sum(dim=(1, 2)), total_B)}
        if "matched" in weights.parts:
            ratios["alignment"] = weights.parts["matched"].sum(dim=(1, 2)), subjects_B
        for name, (part_B, whole_B) in ratios.items():
            share_B = part_B / whole_B.clamp(min=torch.finfo(torch.float32).tiny)
            present_B = both_B * (whole_B > 0)
            for image, values_B, present in zip(
                ("chosen", "rejected"), share_B.chunk(2), present_B.chunk(2), strict=True
            ):
                self._means.add(f"focus/{name}/{image}", values_B, present)
            self._add_by_level(f"focus/{name}", share_B, present_B, noised.level_B)

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
