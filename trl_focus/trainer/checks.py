# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Checks of a trainer's arguments: before a model is loaded, and before anything is changed or written."""

import os
from collections.abc import Callable
from pathlib import Path

from datasets import IterableDataset
from transformers.utils import logging

from ..data.batches import PreferenceRows, PreferenceStream
from ..data.schema import check_columns
from ..families import Family
from .policy import check_lora_config


logger = logging.get_logger(__name__)


def check_arguments(
    config_class: type, model, ref_model, args, train_dataset, eval_dataset, optimizers, peft_config
) -> str:
    """Refuses what can be known without the model and the rows. Returns the reference in force."""
    if not isinstance(args, config_class):
        raise TypeError(f"`args` must be a `{config_class.__name__}`, got {type(args).__name__}.")
    if args.n_gpu > 1:
        raise ValueError(
            "Several GPUs in one process (`nn.DataParallel`) are not supported. Launch one process per GPU with "
            "`accelerate launch` or `torchrun`, or set `CUDA_VISIBLE_DEVICES` to one."
        )
    if peft_config is not None:
        check_lora_config(peft_config)
    if ref_model is not None and ref_model is model:
        raise ValueError("`ref_model` is `model` itself. Leave it out: the LoRA is switched off for the reference.")
    reference = args.reference or ("adapter_off" if ref_model is None else "model")
    if (reference == "model") != (ref_model is not None):
        raise ValueError(
            f"`reference` is {reference!r} and `ref_model` is {'not ' if ref_model is None else ''}given; "
            "`reference='model'` goes with a `ref_model`."
        )
    if train_dataset is None:
        raise ValueError("`train_dataset` is required: give a `datasets.Dataset` of preference pairs.")
    if eval_dataset is None and args.eval_strategy != "no":
        raise ValueError(
            f"`eval_strategy` is {args.eval_strategy.value!r} and there is no `eval_dataset`: give one, or set "
            "`eval_strategy='no'`."
        )
    if any(part is not None for part in optimizers):
        raise ValueError(
            "`optimizers` can't hold the LoRA's weights, which are made here. Choose one with `optim` and `optim_args`, "
            "or set `trainer.optimizer` before `train`."
        )
    each_dataset(check_columns, train_dataset, eval_dataset)
    if isinstance(train_dataset, IterableDataset) and args.max_steps <= 0:
        raise ValueError("`train_dataset` is a stream, whose length is not known: set `max_steps`.")
    _check_writable(args)
    return reference


def named_dataset(name: str, function: Callable, dataset):
    """Hands a dataset to a function; what that refuses is reported under the dataset's name."""
    try:
        return function(dataset)
    except (TypeError, ValueError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"`{name}`: {error}") from error


def each_dataset(function: Callable, train_dataset, eval_dataset) -> tuple:
    """Hands each dataset to a function, and returns what it gives for training and for evaluation."""
    train = named_dataset("train_dataset", function, train_dataset)
    if isinstance(eval_dataset, dict):
        return train, {
            name: named_dataset(f"eval_dataset[{name!r}]", function, part) for name, part in eval_dataset.items()
        }
    return train, None if eval_dataset is None else named_dataset("eval_dataset", function, eval_dataset)


def warn_of_cut_prompts(family: Family, dataset: PreferenceRows | PreferenceStream):
    """Warns of prompts that are longer than the model reads, with what is cut off. A stream's are not known yet."""
    limit = family.max_prompt_tokens
    if limit is None or isinstance(dataset, PreferenceStream):
        return
    long = {}
    for row, prompt in zip(dataset.rows, dataset.dataset["prompt"], strict=True):
        if len(prompt.encode()) >= limit:  # no prompt has more tokens than bytes
            tokens = family.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
            if len(tokens) > limit:
                long[row] = tokens
    if long:
        row = max(long, key=lambda row: len(long[row]))
        logger.warning(
            f"{len(long)} of {len(dataset)} prompts are longer than the {limit} tokens that the model reads of them. Row {row} "
            f"has {len(long[row])}, and this is cut off: {family.tokenizer.decode(long[row][limit:])!r}"
        )


def _check_writable(args):
    """Looks whether the output folder could be made and written, and writes nothing."""
    folder = Path(args.output_dir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if args.should_save and not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise PermissionError(
            f"`output_dir` ({folder}) can't be written: {existing} is "
            f"{'not writable' if existing.is_dir() else 'no folder'}. Choose another folder."
        )
