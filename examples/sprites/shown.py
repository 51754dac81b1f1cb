# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Can features tell which subject a pair is about? In `nuisance-strong` one subject is right on the chosen image, and the other is
anything on both: prints how far the chosen image shows each, by noise level.

    python -m examples.sprites.shown
"""

import tempfile

import datasets
import torch
from rich import print
from rich.table import Table
from transformers.utils import logging

from trl_focus import FocusContext
from trl_focus.focus.correspondence import graded
from trl_focus.focus.maps import needs

from .compare import EncodedOnceTrainer, Run, config_of, load_base, pairs_of


N_PAIRS = 192
REGIME = "nuisance-strong"
BANDS = (0.0, 0.33, 0.66, 1.0)


def shown(context: FocusContext) -> torch.Tensor:
    """Mean of `M'` over each subject on the chosen images, of shape `(B, S)`."""
    masks_BSHW = context.subject_masks_BSHW
    found = graded(context.similarity_BRHW, context.reference_subjects_BR, masks_BSHW)
    matched_BSHW = masks_BSHW * found.matched_BHW.unsqueeze(1)
    return (matched_BSHW.sum(dim=(2, 3)) / masks_BSHW.sum(dim=(2, 3)).clamp(min=1e-6)).chunk(2)[0]


def main():
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    seen = []

    @needs("masks", "similarity")
    def look(context: FocusContext) -> torch.Tensor:
        seen.append((context.level_B.chunk(2)[0], shown(context)))
        return context.level_B.new_ones(len(context.level_B), *context.grid)

    pairs, relevant = (pairs_of(REGIME, 0, only).select(range(N_PAIRS)) for only in (False, True))
    about = torch.tensor([[mask is not None for mask in masks].index(True) for masks in relevant["chosen_masks"]])
    with tempfile.TemporaryDirectory() as folder:
        args = config_of(Run(REGIME, "focus", 100.0), folder)
        trainer = EncodedOnceTrainer(load_base(), args=args, train_dataset=pairs, focus_map=look)
    trainer.encoded, rows = {}, []
    for batch in trainer._loader(trainer.train_dataset, 32, train=True):
        with torch.no_grad():
            trainer.compute_loss(trainer.model, batch)
        rows += batch["row"]
    level_N, shown_NS = map(torch.cat, zip(*seen, strict=True))
    which_N1 = about[rows].unsqueeze(1)
    right_N, other_N = shown_NS.gather(1, which_N1)[:, 0], shown_NS.gather(1, 1 - which_N1)[:, 0]

    table = Table(title=f"{N_PAIRS} pairs of {REGIME}: mean M' on the chosen image")
    for name in (
        "noise level",
        "pairs",
        "of the subject that matters",
        "of the other",
        "larger of the one that matters",
    ):
        table.add_column(name)
    for low, high in zip(BANDS, BANDS[1:], strict=False):
        inside = (level_N >= low) & (level_N < high)
        means = (f"{values[inside].mean():.2f}" for values in (right_N, other_N))
        table.add_row(
            f"{low} to {high}", str(int(inside.sum())), *means, f"{(right_N > other_N)[inside].float().mean():.0%}"
        )
    print(table)


if __name__ == "__main__":
    main()
