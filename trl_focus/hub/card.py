# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers import ModularPipeline
from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig

from .. import __version__
from ..families import Family


TEMPLATE = Path(__file__).with_name("card.md.jinja")
SETTINGS = (
    "loss_type",
    "beta",
    "focus_map",
    "focus_prior",
    "focus_matching",
    "reference",
    "reference_positions",
    "resolution",
    "reference_resolution",
    "learning_rate",
    "max_steps",
    "num_train_epochs",
    "seed",
)
RESULTS = ("loss", "rewards/accuracies", "rewards/margins", "errors/chosen", "eval_loss", "eval_rewards/accuracies")
PACKAGES = ("trl", "diffusers", "transformers", "peft", "torch", "datasets")


def lora_card(
    family: Family,
    args,
    name: str,
    method: str,
    paper: dict[str, str],
    tags: Sequence[str],
    lora: LoraConfig,
    dataset: str | None = None,
    log_history: Sequence[dict[str, Any]] = (),
) -> ModelCard:
    """
    The model card of a trained LoRA.

    Args:
        family ([`~families.Family`]):
            Family of the model.
        args ([`DiffusionDPOConfig`]):
            Settings of the run.
        name (`str`):
            Title: a name, or a repository's id.
        method (`str`), paper (`dict`):
            Name of the method; `title`, `id` and `citation` of its paper.
        tags (`Sequence[str]`):
            Tags to add.
        lora (`LoraConfig`):
            Config of the adapter.
        dataset (`str`, *optional*):
            Id of the dataset.
        log_history (`Sequence[dict]`, *optional*):
            Logs of the run; the last value of each metric is shown.
    """
    pipeline = family.pipeline
    base = family.model_name
    base = base if base and not Path(base).is_dir() else None
    takes_references = family.reference_rule() is not None
    data = ModelCardData(
        library_name="diffusers",
        base_model=base,
        base_model_relation="adapter" if base else None,
        pipeline_tag="image-to-image" if takes_references else "text-to-image",
        datasets=dataset,
        tags=sorted({"diffusers", "diffusers-training", "generated_from_trainer", "lora", "template:sd-lora", *tags}),
    )
    results = {}
    for logs in log_history:
        results.update({key: logs[key] for key in RESULTS if key in logs})
    # what `sample_with_references` has to be told of the training
    helper = {key: getattr(args, key) for key in ("reference_positions", "reference_resolution")}
    settings = {key: getattr(args, key) for key in SETTINGS if getattr(args, key, None) not in (None, -1)}
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        repo=args.hub_model_id,
        method=method,
        paper=paper,
        pipeline=type(pipeline).__name__,
        takes_references=takes_references,
        modular=isinstance(pipeline, ModularPipeline),
        helper={key: value for key, value in helper.items() if value} if family.sampled_by_helper else None,
        base_model=base,
        settings={**settings, "LoRA rank, alpha": f"{lora.r}, {lora.lora_alpha}"},
        results=results,
        versions={"trl-focus": __version__, **{package: version(package) for package in PACKAGES}},
    )
