# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Whether memory stays flat: what the process holds, and how many tensors and other objects live, while training goes on.

    python -m benchmarks.steady_memory [--steps 2000] [--every 200]
"""

import argparse
import gc
import tempfile

import torch
from transformers import TrainerCallback

from examples.photographs.pipeline import ENCODE_PROMPT_KWARGS, tiny_flux2_klein
from examples.photographs.scenes import make_pairs
from trl_focus import FocusDPOConfig, FocusDPOTrainer

from .memory import resident


class LiveObjects(TrainerCallback):
    """
    Counts what is alive after every so many steps.

    Args:
        every (`int`):
            Steps between two counts.
    """

    def __init__(self, every: int):
        self.every = every
        self.steps, self.tensors, self.objects, self.megabytes = [], [], [], []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every:
            return
        gc.collect()
        objects = gc.get_objects()
        self.steps.append(state.global_step)
        self.tensors.append(sum(issubclass(type(part), torch.Tensor) for part in objects))
        self.objects.append(len(objects))
        self.megabytes.append(resident())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=200)
    options = parser.parse_args()
    alive = LiveObjects(options.every)
    with tempfile.TemporaryDirectory() as folder:
        args = FocusDPOConfig(
            output_dir=folder,
            resolution=64,
            encode_prompt_kwargs=ENCODE_PROMPT_KWARGS,
            per_device_train_batch_size=1,
            max_steps=options.steps,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        pairs = make_pairs(8, size=(64, 64), reference_size=(64, 64))
        FocusDPOTrainer(tiny_flux2_klein(), args=args, train_dataset=pairs, callbacks=[alive]).train()
    print("\n| steps | MB | tensors | Python objects |\n" + "| --- " * 4 + "|")
    for row in zip(alive.steps, alive.megabytes, alive.tensors, alive.objects, strict=True):
        print("| {} | {:.1f} | {} | {} |".format(*row))
    print(f"\nat the end, against step {alive.steps[0]}: {alive.megabytes[-1] / alive.megabytes[0]:.4f}")


if __name__ == "__main__":
    main()
