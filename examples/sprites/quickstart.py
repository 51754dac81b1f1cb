# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
From pairs to a LoRA that draws better, in a few minutes on a laptop: a small FLUX.2 [klein] that ships with the repository
and mixes up its subjects is tuned with FocusDPO, and the LoRA is loaded back.

    python -m examples.sprites.quickstart
"""

from pathlib import Path

import numpy as np
import PIL.Image
from datasets import concatenate_datasets
from rich import print
from rich.table import Table

from examples.photographs.pictures import draw_training, save, sheet, show
from trl_focus import FocusDPOConfig, FocusDPOTrainer, LogFocusMapsCallback

from .compare import drawn_scores, means, scenes_of
from .data import make_pairs
from .pipeline import ENCODE_PROMPT_KWARGS, load_base
from .sampling import draw
from .world import SCENE, render


OUTPUT = Path("outputs/quickstart")
REGIMES = ("minimal", "nuisance-weak", "nuisance-strong", "confounded-chosen", "confounded-rejected")
N_PAIRS, N_SCENES, N_SHOWN = 640, 64, 5
MEASURES = {
    "identity": "subjects as in their reference",
    "leakage": "subjects with another's attribute",
    "background_error": "error of the background",
    "residual": "error of the whole picture, given what it shows",
}


def draw_sheet(rows: dict[str, list], path: Path):
    """A column a scene: references, what the base drew, what the LoRA draws, and what was asked for."""
    figure, grid = sheet(
        len(rows["asked for"]), ("reference 1", "reference 2", *[name for name in rows if name != "references"])
    )
    for i, axes in enumerate(grid):
        for ax, image in zip(
            axes, [*rows["references"][i], *(rows[name][i] for name in rows if name != "references")], strict=True
        ):
            show(ax, image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image))
    save(figure, path)


def main():
    share = N_PAIRS // len(REGIMES)
    pairs = concatenate_datasets([make_pairs(regime, share) for regime in REGIMES])
    scenes, references, seeds = (part[:N_SHOWN] for part in scenes_of("test", N_SCENES, 2))

    pipeline = load_base()
    before = means(drawn_scores(pipeline, "test", N_SCENES))
    drawn_before = draw(pipeline, scenes, references, seeds)

    args = FocusDPOConfig(
        output_dir=str(OUTPUT),
        resolution=SCENE,
        encode_prompt_kwargs=ENCODE_PROMPT_KWARGS,
        beta=100.0,
        loss_type=["sigmoid", "sft"],
        focus_sft=True,
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
    loaded = load_base()
    loaded.load_lora_weights(OUTPUT)
    after = means(drawn_scores(loaded, "test", N_SCENES))
    drawn_after = draw(loaded, scenes, references, seeds)
    with trainer.sampling():
        trained = draw(trainer.pipeline, scenes, references, seeds)
    draw_sheet(
        {
            "references": references,
            "base": drawn_before,
            "with LoRA": drawn_after,
            "asked for": [render(scene) for scene in scenes],
        },
        OUTPUT / "samples.png",
    )

    table = Table("", "base", "with LoRA", title=f"{N_SCENES} scenes of two subjects that training never saw")
    for name, what in MEASURES.items():
        table.add_row(what, f"{before[name]:.3f}", f"{after[name]:.3f}")
    print(table)
    print(f"LoRA, card and pictures: {OUTPUT}/")
    if np.abs(trained.astype(int) - drawn_after).max() > 2:
        raise SystemExit("The LoRA that was loaded back is not the one that was trained.")


if __name__ == "__main__":
    main()
