# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What the training scripts share: their arguments, and their main."""

from dataclasses import dataclass, field

from datasets import load_dataset
from peft import LoraConfig

from .._compat import TrlParser


@dataclass
class ScriptArguments:
    """
    Arguments of a script: the data.

    Parameters:
        dataset_name (`str`):
            Hub id or folder of preference pairs.
        dataset_config (`str`, *optional*):
            Configuration of the dataset.
        dataset_train_split (`str`, *optional*, defaults to `"train"`):
            Split to train on.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on, if `eval_strategy` asks for evaluation.
        dataset_streaming (`bool`, *optional*, defaults to `False`):
            Whether to stream the dataset.
    """

    dataset_name: str = field(metadata={"help": "Hub id or folder of preference pairs."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "Split to evaluate on, if `eval_strategy` asks for evaluation."}
    )
    dataset_streaming: bool = field(default=False, metadata={"help": "Whether to stream the dataset."})


@dataclass
class ModelArguments:
    """
    Arguments of a script: the model and its LoRA.

    Parameters:
        model_name_or_path (`str`):
            Hub id or folder of a diffusers pipeline.
        model_revision (`str`, *optional*):
            Branch, tag or commit of the pipeline.
        lora_r (`int`, *optional*, defaults to `16`):
            Rank of the LoRA.
        lora_alpha (`int`, *optional*, defaults to `16`):
            The LoRA counts `lora_alpha / lora_r` times.
        lora_target_modules (`list[str]`, *optional*):
            Names of the layers that get LoRA. Defaults to those of the model's family.
    """

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of a diffusers pipeline."})
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the pipeline on the Hub."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA."})
    lora_alpha: int = field(default=16, metadata={"help": "The LoRA counts `lora_alpha / lora_r` times."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the layers that get LoRA. Defaults to those of the model's family."},
    )


def make_parser(config_class: type, name: str, subparsers=None):
    """A parser of a script's arguments, or its subcommand of a command, as TRL's scripts make them."""
    dataclass_types = (ScriptArguments, config_class, ModelArguments)
    if subparsers is not None:
        return subparsers.add_parser(name, help=f"Run the {name} training script", dataclass_types=dataclass_types)
    return TrlParser(dataclass_types)


def main(trainer_class: type, script_args: ScriptArguments, training_args, model_args: ModelArguments):
    """Trains, saves, and uploads if `push_to_hub` asks for it. Returns the trainer."""
    if model_args.model_revision is not None:
        given = training_args.model_init_kwargs or {}
        training_args.model_init_kwargs = {"revision": model_args.model_revision, **given}
    dataset = load_dataset(
        script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming
    )
    evaluates = training_args.eval_strategy != "no"
    trainer = trainer_class(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if evaluates else None,
        peft_config=LoraConfig(
            r=model_args.lora_r,
            lora_alpha=model_args.lora_alpha,
            init_lora_weights="gaussian",
            target_modules=model_args.lora_target_modules,
        ),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"The LoRA is in {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.end()
    return trainer
