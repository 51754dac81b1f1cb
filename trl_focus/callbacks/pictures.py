# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback


def show(image: PIL.Image.Image, name: str, args, state, callbacks: Iterable[TrainerCallback]):
    """
    Writes a picture to `<output_dir>/<name>/step-<step>.png`, and to the trackers among the trainer's callbacks that take
    pictures and have begun a run: TensorBoard, trackio, wandb.
    """
    path = Path(args.output_dir) / name / f"step-{state.global_step:06d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            if callback.tb_writer is not None:
                callback.tb_writer.add_image(name, np.array(image), state.global_step, dataformats="HWC")
        elif isinstance(callback, TrackioCallback | WandbCallback) and callback._initialized:
            module = callback._wandb if isinstance(callback, WandbCallback) else callback._trackio
            module.log({name: module.Image(image), "train/global_step": state.global_step})
