# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from dataclasses import asdict, fields

import PIL.Image
import torch
from transformers import TrainerCallback

from ..focus.allocation import FocusWeights, normalise, weigh
from ..focus.drawing import focus_sheet
from .pictures import show


class FocusMapCallback(TrainerCallback):
    """
    Base of callbacks that see the focus maps, and may change them, before they weight the error.
    """

    def on_focus_maps(
        self, args, state, control, focus_maps: dict[str, torch.Tensor], batch: dict, **kwargs
    ) -> dict[str, torch.Tensor] | None:
        """
        Event called by [`FocusDPOTrainer`] in every forward of training and evaluation.

        Args:
            focus_maps (`dict[str, torch.Tensor]`):
                Detached maps of shape `(2B, H, W)` on the token grid, the B chosen images first: `"weights"`, and the parts
                it was made of by their names.
            batch (`dict`):
                The collated batch, and `"level"`, the noise level of each of the 2B images in [0, 1].
            kwargs:
                `model` (the policy), `training` (`bool`: in training, or in evaluation), `callbacks` (all of the trainer's) and
                `pixels` (a function: the 2B images of a batch of training, uint8 of shape `(2B, 3, H, W)`, which the batch holds
                as latents where they were encoded once).

        Returns:
            `None` to leave them, or a dictionary of those that are to be replaced. Only `"weights"` is used, and by the loss
            `"anchor"` also `"prior"`, outside of which it holds: they must keep their shape (checked at once), and `"weights"`
            be finite and at least 0 (reported at the next logging step).
        """


class FocusScheduleCallback(FocusMapCallback):
    """
    Moves the weights of the map's parts over training, linearly, from those given here to the configured ones.

    Args:
        start (`dict[str, float]`):
            Weights at the first step, at least 0, by name: `background`, `prior`, `structure`, `leak`, `detail`. Those
            left out stay as configured.
        until (`float`, *optional*, defaults to `1.0`):
            Share of training, above 0, at which the configured weights are reached.

    Raises:
        ValueError: If a name or a value is not one of these; when training begins, if the map is not `"focus"` or `"mask"`,
            whose weights are a sum of parts.
    """

    def __init__(self, start: dict[str, float], until: float = 1.0):
        names = [field.name for field in fields(FocusWeights)]
        if unknown := [name for name in start if name not in names]:
            raise ValueError(f"`start` has {', '.join(map(repr, unknown))}; the parts are {', '.join(names)}.")
        if not 0 < until <= 1:
            raise ValueError(f"`until` is {until}; it is a share of training, above 0 and at most 1.")
        FocusWeights(**start)  # refuses values
        self.start = start
        self.until = until

    def on_train_begin(self, args, state, control, **kwargs):
        if args.focus_map not in ("focus", "mask"):
            raise ValueError(
                f"The weights of `focus_map={args.focus_map!r}` are no sum of parts that a schedule could weigh: choose "
                "'focus' or 'mask'."
            )

    def weights(self, args, state) -> FocusWeights:
        """Weights of the parts at this step."""
        done = min(1.0, state.global_step / (self.until * state.max_steps)) if state.max_steps > 0 else 1.0
        end = asdict(args.focus_weights)
        return FocusWeights(**{name: self.start.get(name, end[name]) * (1 - done) + end[name] * done for name in end})

    def on_focus_maps(self, args, state, control, focus_maps, batch, **kwargs):
        masks = None
        if "chosen_masks" in batch and "rejected_masks" in batch:
            masks = torch.cat([batch["chosen_masks"], batch["rejected_masks"]])
        weights_BHW = weigh(focus_maps, self.weights(args, state))
        return {"weights": normalise(weights_BHW, args.focus_normalization, masks)}


class LogFocusMapsCallback(FocusMapCallback):
    """
    Draws the parts of the focus map over the images of a training batch, side by side, from little noise to much: see
    [`show`] for where to.

    Args:
        every_n_steps (`int`, *optional*, defaults to `100`):
            Updates between two drawings; the first is of the first batch.
        n_pairs (`int`, *optional*, defaults to `4`):
            Pairs that are drawn, at most a batch.
    """

    def __init__(self, every_n_steps: int = 100, n_pairs: int = 4):
        self.every_n_steps = every_n_steps
        self.n_pairs = n_pairs
        self._drawn: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._drawn = None

    def on_focus_maps(self, args, state, control, focus_maps, batch, pixels, training=True, callbacks=(), **kwargs):
        step = state.global_step
        if not training or step % self.every_n_steps or step == self._drawn or not state.is_world_process_zero:
            return
        self._drawn = step  # with gradient accumulation a step has several batches
        pairs = len(batch["prompt"])
        level = batch["level"].tolist()
        order = sorted(range(pairs), key=level.__getitem__)[:: -(-pairs // self.n_pairs)]
        rows = [pair + offset for pair in order for offset in (0, pairs)]
        images = pixels()[rows].permute(0, 2, 3, 1).cpu().numpy()
        captions = [
            f"{'chosen' if row < pairs else 'rejected'}, row {batch['row'][row % pairs]}, noise level {level[row]:.2f}"
            for row in rows
        ]
        maps = {name: part[rows].float().cpu().numpy() for name, part in focus_maps.items()}
        picture = focus_sheet([PIL.Image.fromarray(image) for image in images], maps, captions)
        show(picture, "focus_maps", args, state, callbacks)
