# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Can features tell which subject a pair is about? In `nuisance-strong` one subject is right on the chosen image, and the other is
anything on both: prints how far the chosen image shows each, by the noise level at which the model sees it.

    python -m examples.sprites.shown
"""

import tempfile

import datasets
import torch
from rich import print
from rich.table import Table
from transformers.utils import logging

from trl_focus import FocusDPOTrainer

from .compare import config_of
from .pairs import pairs_of
from .pipeline import DEVICE, load_base
from .runs import Run


N_PAIRS = 256
REGIME = "nuisance-strong"
LEVELS = (0.125, 0.25, 0.5, 0.75, 0.9)
COLUMNS = ("noise level", "of the subject that matters", "of the other", "larger of the one that matters")


def main():
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    pairs, relevant = (pairs_of(REGIME, 0, only).select(range(N_PAIRS)) for only in (False, True))
    about = torch.tensor([[mask is not None for mask in masks].index(True) for masks in relevant["chosen_masks"]])
    with tempfile.TemporaryDirectory() as folder:
        args = config_of(Run(REGIME, "focus", 100.0), folder)
        trainer = FocusDPOTrainer(load_base(), args=args, train_dataset=pairs)
    trainer.model.eval()
    found = {level: [] for level in LEVELS}
    for batch in trainer.get_train_dataloader():
        which_B1 = about[batch["row"]].unsqueeze(1).to(DEVICE)
        for level, values in found.items():
            chosen_BS = trainer.shown(batch, level).chunk(2)[0]
            values.append(torch.cat([chosen_BS.gather(1, which_B1), chosen_BS.gather(1, 1 - which_B1)], dim=1))

    table = Table(title=f"{N_PAIRS} pairs of {REGIME}: mean M' on the chosen image")
    for name in COLUMNS:
        table.add_column(name)
    for level, values in found.items():
        right_N, other_N = torch.cat(values).T
        share = (right_N > other_N).float().mean()
        table.add_row(f"{level}", f"{right_N.mean():.2f}", f"{other_N.mean():.2f}", f"{share:.0%}")
    print(table)


if __name__ == "__main__":
    main()
