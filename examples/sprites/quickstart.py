# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
From pairs to a LoRA that draws better, in a few minutes on a laptop: a small FLUX.2 [klein] that ships with the repository
and mixes up its subjects is tuned with FocusDPO, and the LoRA is loaded back.

    python -m examples.sprites.quickstart
"""

from pathlib import Path

import numpy as np
from rich import print
from rich.table import Table

from examples.pictures import draw_training
from trl_focus import FocusDPOConfig, FocusDPOTrainer, LogFocusMapsCallback

from .data import make_pairs
from .pipeline import ENCODE_PROMPT_KWARGS, load_base
from .sampling import draw, drawn_scores, means, scenes_of
from .sheet import draw_sheet, leaking
from .world import SCENE


OUTPUT = Path("outputs/quickstart")
N_PAIRS, N_SCENES, N_SHOWN = 640, 64, 5
FIRST = 512  # scenes before it belong to the comparison, and settings were compared on them
MEASURES = {
    "identity": "subjects as in their reference",
    "leakage": "subjects with another's attribute",
    "background_error": "error of the background",
    "residual": "error of the whole picture, given what it shows",
}


def main():
    pairs = make_pairs("minimal", N_PAIRS)
    pipeline = load_base()
    scores = drawn_scores(pipeline, "test", N_SCENES, first=FIRST)
    before = means(scores)
    shown = leaking(scores, N_SHOWN)
    scenes, references, seeds = ([part[i] for i in shown] for part in scenes_of("test", N_SCENES, 2, first=FIRST))
    drawn_before = draw(pipeline, scenes, references, seeds)

    args = FocusDPOConfig(
        output_dir=str(OUTPUT),
        resolution=SCENE,
        encode_prompt_kwargs=ENCODE_PROMPT_KWARGS,
        beta=100.0,
        per_device_train_batch_size=16,
        learning_rate=5e-4,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=10,
        max_steps=80,
        logging_steps=2,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
    )
    trainer = FocusDPOTrainer(
        pipeline, args=args, train_dataset=pairs, callbacks=[LogFocusMapsCallback(every_n_steps=40)]
    )
    trainer.train()
    trainer.save_model()
    draw_training(trainer.state.log_history, OUTPUT / "training.png")

    # What a user of the LoRA does: the base pipeline, and one line
    loaded = load_base().to(args.device)
    loaded.load_lora_weights(OUTPUT)
    after = means(drawn_scores(loaded, "test", N_SCENES, first=FIRST))
    drawn_after = draw(loaded, scenes, references, seeds)
    with trainer.sampling():
        trained = draw(trainer.pipeline, scenes, references, seeds)
    draw_sheet(scenes, references, {"base": drawn_before, "with LoRA": drawn_after}, OUTPUT / "samples.png")

    table = Table("", "base", "with LoRA", title=f"{N_SCENES} scenes of two subjects that training never saw")
    for name, what in MEASURES.items():
        table.add_row(what, f"{before[name]:.3f}", f"{after[name]:.3f}")
    print(table)
    print(f"LoRA, card and pictures: {OUTPUT}/")
    if np.abs(trained.astype(int) - drawn_after).max() > 2:
        raise SystemExit("The LoRA that was loaded back is not the one that was trained.")


if __name__ == "__main__":
    main()
