# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
The focus map of a single pair at any noise level: without a model from masks and detail, with one also from what it matches.

Tensor names carry their shape: B = 2 images (chosen, then rejected), R references, H W the token grid.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..data.batches import RowKey
from ..data.collator import DataCollatorForDiffusionPreference
from ..data.detail import with_detail
from ..data.layout import LayoutRule
from ..families.base import Family
from ..families.tap import BlockTap
from ..focus.correspondence import prototypes, similarity
from ..focus.drawing import focus_sheet
from ..focus.maps import FOCUS_MAPS, SHOWN_AT, FocusContext, FocusSettings, shown
from ..noise import noised_at


CELL = 16  # pixels: what a token is in most models
NO_MASKS = "the pair has no masks of both images, of which it would be made"


class Matcher:
    """
    Finds where a model's own features match the references, as [`FocusDPOTrainer`] does in training.

    Args:
        family ([`~families.Family`]):
            A model that looks at references.
        resolution (`int`, *optional*):
            Side of the square of the area that pairs are resized to. Defaults to the pipeline's own.
        stretch (`bool`, *optional*, defaults to `True`):
            Whether whole images are resized, or the middle cut out.

    Raises:
        ValueError: If the model looks at no references.
    """

    def __init__(self, family: Family, resolution: int | None = None, stretch: bool = True):
        if not family.feature_blocks:
            raise ValueError(
                f"{type(family).__name__} has no tokens of references to compare images with: leave the model out."
            )
        self.family = family
        self.rule = LayoutRule(
            resolution or family.default_resolution,
            family.size_multiple,
            family.reference_rule(),
            stretch,
            family.reference_counts,
        )
        self._tap = BlockTap(family.denoiser, family.feature_blocks)

    @torch.no_grad()
    def similarity(self, batch: Mapping[str, Any], level: float) -> torch.Tensor:
        """
        Cosine similarity of each reference with each cell of a collated pair.

        Args:
            batch (`Mapping`):
                One pair.
            level (`float`):
                Noise level in [0, 1].

        Returns:
            `torch.Tensor` of shape `(2, R, H, W)` in [-1, 1], on the CPU.
        """
        family, device = self.family, self.family.denoiser.device
        dtype = family.denoiser.dtype
        x_BCHW = family.encode_pixels(torch.cat([batch["chosen"], batch["rejected"]])).float()
        prompt = family.encode_prompt(batch["prompt"] * 2, batch["prompt_references"] * 2)
        references = [
            torch.cat([family.encode_pixels(pixels_BCHW).float()] * 2) for pixels_BCHW in batch["references"]
        ]
        noised = noised_at(family.process, x_BCHW, batch["seed"], level)
        grid, *grids = (tuple(image.shape[-2:]) for image in (x_BCHW, *references))
        masks = [torch.cat([mask_Bhw.flatten(1)] * 2).to(device) for mask_Bhw in batch["reference_masks"]]

        def compare(tokens_BSD: torch.Tensor) -> torch.Tensor:
            target_BSD, shown = family.image_tokens(tokens_BSD, prompt, grid, grids)
            return similarity(target_BSD, prototypes(shown, masks), grid)

        mixed = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
        with self._tap.reading(compare) as read, mixed:
            family.predict(family.denoiser, noised.noisy_BCHW, noised.timestep_B, prompt, references)
        return torch.stack(read).mean(dim=0).cpu()


@dataclass(frozen=True)
class PairMaps:
    """
    What the focus map of a pair is made of at any noise level.

    Attributes:
        batch (`dict`):
            The pair as [`DataCollatorForDiffusionPreference`] collates it, with detail.
        matcher ([`Matcher`], *optional*):
            What says where references are matched.
    """

    batch: dict[str, Any]
    matcher: Matcher | None = None

    @classmethod
    def of(
        cls, row: Mapping[str, Any], matcher: Matcher | None = None, resolution: int = 512, stretch: bool = True
    ) -> "PairMaps":
        """
        Reads a row of the preference schema.

        Args:
            row (`Mapping`):
                A row without problems.
            matcher ([`Matcher`], *optional*):
                Says at which size pairs are looked at; references are left out without one.
            resolution (`int`, *optional*, defaults to `512`), stretch (`bool`, *optional*, defaults to `True`):
                As for [`Matcher`], where there is none.

        Raises:
            ValueError: If the row's images can't be trained on, or it has no masks.
        """
        if row.get("chosen_masks") is None or row.get("rejected_masks") is None:
            raise ValueError(NO_MASKS)
        rule = matcher.rule if matcher else LayoutRule(resolution, CELL, stretch=stretch)
        cell = matcher.family.cell_size if matcher else CELL
        if not matcher:
            row = {**row, "references": None, "reference_masks": None, "reference_subjects": None}
        collator = DataCollatorForDiffusionPreference(rule, cell, crop="none" if rule.stretch else "center")
        return cls(collator([{**row, **with_detail(row, rule), "key": RowKey(0)}]), matcher)

    def parts(self, level: float, settings: FocusSettings | None = None) -> dict[str, torch.Tensor]:
        """
        The focus map at a noise level.

        Args:
            level (`float`):
                Noise level in [0, 1].
            settings ([`FocusSettings`], *optional*):
                As training takes them; by default its defaults.

        Returns:
            `dict[str, torch.Tensor]`, each of shape `(2, H, W)`: the parts by their names, and `"weights"`.
        """
        batch, settings = self.batch, settings or FocusSettings()
        masks_BSHW, detail_BHW = (
            torch.cat([batch[f"chosen_{name}"], batch[f"rejected_{name}"]]) for name in ("masks", "detail")
        )
        context = FocusContext(
            torch.full((2,), float(level)), tuple(masks_BSHW.shape[-2:]), masks_BSHW, detail_BHW=detail_BHW
        )
        if self.matcher and batch["references"]:
            context = replace(
                context,
                similarity_BRHW=self.matcher.similarity(batch, level),
                reference_subjects_BR=batch["reference_subjects"].repeat(2, 1),
            )
        if settings.subject_gate == "shown":
            seen = context
            if context.similarity_BRHW is not None:
                seen = replace(context, similarity_BRHW=self.matcher.similarity(batch, SHOWN_AT))
            context = replace(context, shown_BS=shown(seen, settings))
        return FOCUS_MAPS["focus"](context, settings)

    def draw(self, level: float) -> PIL.Image.Image:
        """A picture of each part at a noise level, of chosen above rejected."""
        pixels_BCHW = torch.cat([self.batch["chosen"], self.batch["rejected"]])
        images = [PIL.Image.fromarray(image) for image in pixels_BCHW.permute(0, 2, 3, 1).numpy()]
        maps: dict[str, np.ndarray] = {name: part.numpy() for name, part in self.parts(level).items()}
        return focus_sheet(images, maps, [f"{image}, noise level {level:.2f}" for image in ("chosen", "rejected")])
