# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from transformers import TrainerCallback

from ..data.images import decode_image
from ..focus.drawing import sheet
from ..hub.pictures import SAMPLES, write_samples
from .pictures import show


class LogSamplesCallback(TrainerCallback):
    """
    Draws samples of fixed rows from fixed seeds, the base model's beside the LoRA's, when training begins, every few steps
    and when it ends: see [`show`] for where to. Training is not touched: it goes on as it would have.

    The last pictures of the LoRA also stand one by one in `<output_dir>/samples`, with what they were drawn from in
    `metadata.jsonl`: they are the gallery of the model card.

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
        self._references = [
            [decode_image(image).convert("RGB") for image in row.get("references") or []] for row in self.rows
        ]
        self._base: list[PIL.Image.Image] | None = None
        self._drawn: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._draw(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every_n_steps == 0:
            self._draw(args, state)

    def on_epoch_end(self, args, state, control, **kwargs):
        # the last pictures, while trackers still take some: they are closed when training ends
        if control.should_training_stop and state.global_step != self._drawn:
            self._draw(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        other_weights = args.load_best_model_at_end and state.best_global_step not in (None, state.global_step)
        if state.global_step != self._drawn or other_weights:
            self._draw(args, state)

    @property
    def settings(self) -> dict[str, Any]:
        """What the pipeline is called with, besides prompt and references."""
        return {**self.trainer.family.call_settings(self.trainer.layout_rule.resolution), **self.pipeline_kwargs}

    def _draw(self, args, state):
        if not state.is_world_process_zero:
            return
        self._drawn = state.global_step
        if self._base is None:
            with self.trainer.base_policy():
                self._base = self._sample()
        images = self._sample()
        most = max(map(len, self._references))
        rows = [
            [base, tuned, *shown, *[None] * (most - len(shown))]
            for base, tuned, shown in zip(self._base, images, self._references, strict=True)
        ]
        titles = ["base", "with LoRA", *(f"reference {i + 1}" for i in range(most))]
        prompts = [row["prompt"] for row in self.rows]
        show(sheet(rows, titles, prompts), SAMPLES, args, state, self.trainer.callback_handler.callbacks)
        seeds = [self.seed + i for i in range(len(images))]
        write_samples(
            Path(args.output_dir), state.global_step, images, prompts, seeds, self._references, self.settings
        )

    def _sample(self) -> list[PIL.Image.Image]:
        images, trainer = [], self.trainer
        with trainer.sampling():
            for i, (row, references) in enumerate(zip(self.rows, self._references, strict=True)):
                generator = torch.Generator().manual_seed(self.seed + i)
                images += trainer.family.sample(
                    row["prompt"],
                    references,
                    trainer.args.reference_resolution,
                    generator=generator,
                    **self.settings,
                ).images[:1]
        return images
