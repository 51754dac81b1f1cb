# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
From photographs to a LoRA in about a minute on a laptop: builds preference pairs, trains a small FLUX.2-shaped pipeline
with FocusDPO, and loads the LoRA back.

The pipeline has random weights, so it does not draw: its samples show that the LoRA changes them, not that they get
better. Everything else is what a real run does; for one, give the trainer a real model.

    python -m examples.photographs
"""

from pathlib import Path

import PIL.Image
import PIL.ImageChops
import torch
from rich import print

from trl_focus import FocusDPOConfig, FocusDPOTrainer, LogFocusMapsCallback

from ..pictures import draw_pairs, draw_samples, draw_training, summary_table
from .pipeline import ENCODE_PROMPT_KWARGS, tiny_flux2_klein
from .scenes import make_pairs


OUTPUT = Path("outputs/photographs")
SIZE = 128  # pixels


def sample(pipeline, rows) -> list[PIL.Image.Image]:
    """One image per row, from fixed noise."""
    return [
        pipeline(
            image=row["references"],
            prompt=row["prompt"],
            height=SIZE,
            width=SIZE,
            num_inference_steps=8,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0),
            **ENCODE_PROMPT_KWARGS,
        ).images[0]
        for row in rows
    ]


def main():
    pairs = make_pairs(96, size=(SIZE, SIZE), seed=0).train_test_split(test_size=16, shuffle=False)
    draw_pairs(pairs["test"], OUTPUT / "pairs.png")
    rows = [pairs["test"][i] for i in range(3)]

    pipeline = tiny_flux2_klein()
    pipeline.set_progress_bar_config(disable=True)
    before = sample(pipeline, rows)

    args = FocusDPOConfig(
        output_dir=str(OUTPUT),
        resolution=SIZE,
        encode_prompt_kwargs=ENCODE_PROMPT_KWARGS,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        max_steps=100,
        warmup_steps=10,
        logging_steps=4,
        eval_strategy="steps",
        eval_steps=20,
        save_strategy="no",
        report_to="none",
    )
    trainer = FocusDPOTrainer(
        pipeline,
        args=args,
        train_dataset=pairs["train"],
        eval_dataset=pairs["test"],
        callbacks=[LogFocusMapsCallback(every_n_steps=50)],
    )
    trainer.train()
    trainer.save_model()
    draw_training(trainer.state.log_history, OUTPUT / "training.png")
    trained = sample(pipeline, rows)

    # What a user of the LoRA does: the base pipeline, and one line
    loaded = tiny_flux2_klein()
    loaded.set_progress_bar_config(disable=True)
    loaded.load_lora_weights(OUTPUT)
    after = sample(loaded, rows)
    draw_samples(
        before, after, [row["prompt"] for row in rows], [row["references"] for row in rows], OUTPUT / "samples.png"
    )

    metrics = trainer.evaluate()
    differs = max(largest_difference(*images) for images in zip(trained, after, strict=True))
    changed = max(largest_difference(*images) for images in zip(before, after, strict=True))
    print(
        summary_table(
            [
                ("pairs", f"{len(pairs['train'])} to train, {len(pairs['test'])} to evaluate"),
                ("accuracy on new pairs", f"{metrics['eval_rewards/accuracies']:.2f} (0.50 at the start)"),
                ("margin on new pairs", f"{metrics['eval_rewards/margins']:.3f} (0 at the start)"),
                ("loaded LoRA against the trained model", f"samples differ by {differs} of 255"),
                ("loaded LoRA against the base model", f"samples differ by {changed} of 255"),
                ("LoRA, card, pictures", f"{OUTPUT}/"),
            ],
            title="pairs from photographs",
        )
    )
    if differs > 1 or changed == 0:
        raise SystemExit("The LoRA that was loaded back is not the one that was trained.")


def largest_difference(one: PIL.Image.Image, other: PIL.Image.Image) -> int:
    """Largest difference of two images' pixels, 0 to 255."""
    return max(high for _, high in PIL.ImageChops.difference(one, other).getextrema())


if __name__ == "__main__":
    main()
