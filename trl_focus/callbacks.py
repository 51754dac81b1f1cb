# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.utils import logging

from .data.images import decode_image
from .focus.allocation import FocusWeights, normalise, weigh
from .focus.drawing import focus_sheet, sheet


logger = logging.get_logger(__name__)


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
                `model` (the policy), `training` (`bool`: in training, or in evaluation) and `callbacks` (all of the trainer's).

        Returns:
            `None` to leave them, or a dictionary of those that are to be replaced. Only `"weights"` is used: it must keep
            its shape (checked at once), and be finite and at least 0 (reported at the next logging step).
        """


class PreferenceCollapseCallback(TrainerCallback):
    """
    Warns, or stops training, when the policy wins by ruining images: its error on the *chosen* images lies above the
    reference's and rises, and yet its accuracy does not fall. It is how runs end in noise while their margins still grow.

    It compares the means of the last `patience` logs with those of as many before, since single logs are noisy.

    Args:
        patience (`int`, *optional*, defaults to `8`):
            Number of logs to average; it speaks after twice as many at the earliest.
        stop (`bool`, *optional*, defaults to `False`):
            Whether to stop training instead of only warning.
    """

    def __init__(self, patience: int = 8, stop: bool = False):
        self.patience = patience
        self.stop = stop
        self._logs: deque[tuple[float, float]] = deque(maxlen=2 * patience)  # chosen error, accuracy

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "errors/chosen" not in logs or "rewards/accuracies" not in logs:
            return
        self._logs.append((logs["errors/chosen"], logs["rewards/accuracies"]))
        if len(self._logs) < 2 * self.patience:
            return
        errors, accuracies = zip(*self._logs, strict=True)
        (old_error, error), (old_accuracy, accuracy) = (
            (fmean(values[: self.patience]), fmean(values[self.patience :])) for values in (errors, accuracies)
        )
        if min(errors[self.patience :]) > 0 and error > old_error and accuracy >= max(0.5, old_accuracy):
            self._logs.clear()
            logger.warning(
                f"Step {state.global_step}: over the last {self.patience} logs the policy's error on chosen images was "
                f"{error:.2e} above the reference's, and rose, while its accuracy is {accuracy:.2f}: it wins by getting worse. "
                "Add 'sft' to `loss_type`, set `rejected_error_bound` (0.01), raise `beta`, or lower `learning_rate`."
            )
            if self.stop:
                control.should_training_stop = True


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


def show(image: PIL.Image.Image, name: str, args, state, callbacks: Iterable[TrainerCallback]):
    """
    Writes a picture to `<output_dir>/<name>/step-<step>.png`, and to the trackers that this run reports to and that take
    pictures: TensorBoard, trackio, wandb.
    """
    path = Path(args.output_dir) / name / f"step-{state.global_step:06d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_image(name, np.array(image), state.global_step, dataformats="HWC")
    for tracker in ("trackio", "wandb"):
        if tracker in args.report_to:  # its callback has imported it, and begun the run
            module = sys.modules[tracker]
            module.log({name: module.Image(image), "train/global_step": state.global_step})


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

    def on_focus_maps(self, args, state, control, focus_maps, batch, training=True, callbacks=(), **kwargs):
        step = state.global_step
        if not training or step % self.every_n_steps or step == self._drawn or not state.is_world_process_zero:
            return
        self._drawn = step  # with gradient accumulation a step has several batches
        pairs = len(batch["prompt"])
        level = batch["level"].tolist()
        order = sorted(range(pairs), key=level.__getitem__)[:: -(-pairs // self.n_pairs)]
        rows = [pair + offset for pair in order for offset in (0, pairs)]
        pixels = torch.cat([batch["chosen"], batch["rejected"]])[rows].permute(0, 2, 3, 1).cpu().numpy()
        captions = [
            f"{'chosen' if row < pairs else 'rejected'}, row {batch['row'][row % pairs]}, noise level {level[row]:.2f}"
            for row in rows
        ]
        maps = {name: part[rows].float().cpu().numpy() for name, part in focus_maps.items()}
        picture = focus_sheet([PIL.Image.fromarray(image) for image in pixels], maps, captions)
        show(picture, "focus_maps", args, state, callbacks)


class LogSamplesCallback(TrainerCallback):
    """
    Draws samples of fixed rows from fixed seeds, the base model's beside the LoRA's, when training begins, every few steps
    and when it ends: see [`show`] for where to. Training is not touched: it goes on as it would have.

    Args:
        trainer ([`DiffusionDPOTrainer`]):
            The trainer that it is added to, with `trainer.add_callback`.
        rows (`Sequence[dict]`):
            `prompt`, and `references` where the model takes them, as in the preference schema.
        every_n_steps (`int`, *optional*, defaults to `100`):
            Updates between two drawings.
        seed (`int`, *optional*, defaults to `0`):
            Row `i` starts from the noise of seed `seed + i`.
        pipeline_kwargs:
            For the call of the pipeline: `num_inference_steps`, `guidance_scale`, `height`, ...
    """

    def __init__(
        self, trainer, rows: Sequence[dict[str, Any]], every_n_steps: int = 100, seed: int = 0, **pipeline_kwargs
    ):
        self.trainer = trainer
        self.rows = list(rows)
        self.every_n_steps = every_n_steps
        self.seed = seed
        self.pipeline_kwargs = pipeline_kwargs
        self._base: list[PIL.Image.Image] | None = None
        self._drawn: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._draw(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every_n_steps == 0:
            self._draw(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        if state.global_step != self._drawn:
            self._draw(args, state)

    def _draw(self, args, state):
        if not state.is_world_process_zero:
            return
        self._drawn = state.global_step
        if self._base is None:
            with self.trainer.base_policy():
                self._base = self._sample()
        references = [[decode_image(image) for image in row.get("references") or []] for row in self.rows]
        most = max(map(len, references))
        rows = [
            [base, tuned, *shown, *[None] * (most - len(shown))]
            for base, tuned, shown in zip(self._base, self._sample(), references, strict=True)
        ]
        titles = ["base", "with LoRA", *(f"reference {i + 1}" for i in range(most))]
        picture = sheet(rows, titles, [row["prompt"] for row in self.rows])
        show(picture, "samples", args, state, self.trainer.callback_handler.callbacks)

    def _sample(self) -> list[PIL.Image.Image]:
        family = self.trainer.family
        accepted = family.call_defaults
        side = self.trainer.layout_rule.resolution
        settings = {"height": side, "width": side, **family.encode_prompt_kwargs, **self.pipeline_kwargs}
        settings = {
            name: value for name, value in settings.items() if name in accepted or name in self.pipeline_kwargs
        }
        images = []
        with self.trainer.sampling():
            for i, row in enumerate(self.rows):
                references = [decode_image(image).convert("RGB") for image in row.get("references") or []]
                generator = torch.Generator().manual_seed(self.seed + i)
                images += family.sample(
                    row["prompt"], references, self.trainer.args.reference_resolution, generator=generator, **settings
                ).images[:1]
        return images
