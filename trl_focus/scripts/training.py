# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What the training scripts share: their main."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft import LoraConfig

from ..data.loading import PreferenceDataset, load_mixture, load_preferences
from ..errors import InputError, refusals
from .arguments import ModelArguments, ScriptArguments, parse


if TYPE_CHECKING:
    from ..trainer.diffusion_dpo_trainer import DiffusionDPOTrainer


def load_splits(
    arguments: ScriptArguments, evaluates: bool, seed: int
) -> tuple[PreferenceDataset, PreferenceDataset | None]:
    """Pairs to train on, and those to evaluate on."""

    def load(split: str) -> PreferenceDataset:
        return load_preferences(
            arguments.dataset_name,
            arguments.dataset_config,
            split,
            arguments.dataset_revision,
            arguments.dataset_streaming,
            arguments.columns,
        )

    if arguments.datasets:
        train = load_mixture(arguments.datasets, arguments.dataset_streaming)
    else:
        train = load(arguments.dataset_train_split)
    if not evaluates:
        return train, None
    if arguments.test_split_size is not None:
        size = arguments.test_split_size
        # The seed is that of the run: each process has to hold out the same rows
        parts = train.train_test_split(test_size=int(size) if size > 1 else size, seed=seed)
        return parts["train"], parts["test"]
    if arguments.datasets:
        raise InputError(
            "`eval_strategy` asks for evaluation: with `datasets`, set `test_split_size` to hold out rows"
        )
    return train, load(arguments.dataset_test_split)


def named_in_card(arguments: ScriptArguments) -> str | None:
    """Id of the dataset, if there is one of a single dataset on the Hub: a local path is nobody else's business."""
    names = [part["path"] for part in arguments.datasets or [{"path": arguments.dataset_name}]]
    ids = [name for name in names if not Path(name).expanduser().is_dir()]
    return ids[0] if len(ids) == 1 else None


def make_trainer(
    trainer_class: type, script_args: ScriptArguments, training_args, model_args: ModelArguments
) -> "DiffusionDPOTrainer":
    """
    The trainer of a run.

    Raises:
        InputError: If it refuses what it was given.
    """
    if model_args.model_revision is not None:
        given = training_args.model_init_kwargs or {}
        training_args.model_init_kwargs = {"revision": model_args.model_revision, **given}
    evaluates = training_args.eval_strategy != "no"
    with refusals():
        with training_args.main_process_first(local=False, desc="loading the dataset"):
            train_dataset, eval_dataset = load_splits(script_args, evaluates, training_args.seed)
        trainer = trainer_class(
            model=model_args.model_name_or_path,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=LoraConfig(
                r=model_args.lora_r,
                lora_alpha=model_args.lora_alpha,
                init_lora_weights="gaussian",
                target_modules=model_args.lora_target_modules,
            ),
        )
    trainer.dataset_name = named_in_card(script_args)
    return trainer


def main(
    trainer_class: type, script_args: ScriptArguments, training_args, model_args: ModelArguments
) -> "DiffusionDPOTrainer":
    """Trains, saves, and uploads if `push_to_hub` asks for it. Returns the trainer."""
    trainer = make_trainer(trainer_class, script_args, training_args, model_args)
    resume = training_args.resume_from_checkpoint
    # the command line can only say it in letters
    trainer.train(resume_from_checkpoint=True if str(resume).lower() == "true" else resume)
    if training_args.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.save_model()
    trainer.accelerator.print(f"The LoRA is in {training_args.output_dir}.")
    # All stay until the LoRA is saved. On the CPU this is also the pause in which gloo's thread lets go of the last tensors that it
    # gathered: it needs the interpreter for that, and the group, as it is freed, would hold the interpreter and wait for it for ever.
    trainer.accelerator.wait_for_everyone()
    trainer.end()
    return trainer


def run(make_parser: Callable, script_main: Callable, argv: Sequence[str] | None = None) -> int:
    """
    A script from its command line to its exit code: 0 where it is done, 2 where it refuses what it was given, in words. Its
    failures raise, which ends a program with 1.
    """
    try:
        script_main(*parse(make_parser(), sys.argv[1:] if argv is None else argv).arguments)
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"error: {error}\n")
        return 2
    return 0
