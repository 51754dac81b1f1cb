# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import seed_worker

from .batches import LayoutBatchSampler, PreferenceRows, PreferenceStream


def preference_loader(
    dataset: PreferenceRows | PreferenceStream,
    batch_size: int,
    collator: Callable,
    args: TrainingArguments,
    accelerator: Accelerator,
    train: bool,
) -> DataLoader:
    """
    Loads batches of one layout each, those of this process alone, onto its device.

    Args:
        dataset ([`PreferenceRows`] or [`PreferenceStream`]):
            Checked pairs.
        batch_size (`int`):
            Pairs in a full batch.
        collator (`Callable`):
            Makes a batch of rows.
        args (`TrainingArguments`):
            Its `dataloader_*` settings, sampling and seeds are read.
        accelerator (`Accelerator`):
            Which process this is, and where its batches go.
        train (`bool`):
            Whether rows are shuffled, and left-over rows dropped if the settings ask for it.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    drop_last = train and args.dataloader_drop_last
    if isinstance(dataset, PreferenceStream):
        dataset.batch_size, dataset.rank, dataset.world_size = batch_size, rank, world_size
        dataset.drop_last = drop_last
        batching = {"batch_size": None}
    else:
        sampler = LayoutBatchSampler(
            dataset.layouts,
            batch_size,
            rank,
            world_size,
            shuffle=train and args.train_sampling_strategy != "sequential",
            seed=args.seed if args.data_seed is None else args.data_seed,
            drop_last=drop_last,
        )
        batching = {"batch_sampler": sampler}
    workers = args.dataloader_num_workers
    loader = DataLoader(
        dataset,
        **batching,
        collate_fn=collator,
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        worker_init_fn=partial(seed_worker, num_workers=workers, rank=rank) if workers else None,
        generator=torch.Generator().manual_seed(args.seed),  # leaves the global one alone
    )
    # Batches are already those of this process: accelerate only has to move them
    return prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        dispatch_batches=False,
        non_blocking=args.dataloader_pin_memory,
    )
