# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
The model card of a LoRA. It is made of the facts of its run, which stand in `card.json` beside it, and of the pictures that are
found in its folder: so it can be made again without the trainer.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import ModularPipeline
from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig

from .. import __version__
from ..families import Family
from .base_model import base_model
from .metrics import CURVE, draw_curve, panels, series, summary, thinned
from .pictures import FOCUS_MAPS, SAMPLES, last_picture, read_samples
from .snippet import snippet


TEMPLATE = Path(__file__).with_name("card.md.jinja")
FACTS = "card.json"
SETTINGS = (
    "loss_type",
    "beta",
    "focus_map",
    "focus_prior",
    "focus_matching",
    "reference",
    "learning_rate",
    "lr_scheduler_type",
    "optim",
    "seed",
)
# shown where they are not the config's default
FURTHER_SETTINGS = (
    "loss_weights",
    "label_smoothing",
    "rejected_error_bound",
    "target_gradient_factor",
    "reference_positions",
    "reference_resolution",
    "guidance_scale",
    "caption_dropout",
    "crop",
    "random_flip",
    "weighting_scheme",
    "logit_mean",
    "logit_std",
    "mode_scale",
    "sampling_steps",
    "focus_blocks",
    "focus_normalization",
    "focus_sft",
    "background_weight",
    "prior_weight",
    "structure_weight",
    "leak_weight",
    "detail_weight",
    "detail_gate",
    "detail_threshold",
    "subject_gate",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
)
PACKAGES = ("trl", "diffusers", "transformers", "peft", "torch", "datasets")


def card_facts(
    family: Family,
    args,
    folder: str | Path,
    name: str,
    method: str,
    paper: dict[str, str],
    tags: Sequence[str],
    lora: LoraConfig,
    repo: str | None = None,
    dataset: str | None = None,
    prompt: str | None = None,
    with_references: bool = True,
    resolution: int | None = None,
    state=None,
) -> dict[str, Any]:
    """
    What a model card tells of a run, as JSON can hold it.

    Args:
        family ([`~families.Family`]):
            Family of the model.
        args ([`DiffusionDPOConfig`]):
            Settings of the run.
        folder (`str` or `Path`):
            Folder of the card.
        name (`str`):
            Title: a name, or a repository's id.
        method (`str`), paper (`dict`):
            Name of the method; `title`, `id` and `citation` of its paper.
        tags (`Sequence[str]`):
            Tags to add.
        lora (`LoraConfig`):
            Config of the adapter.
        repo (`str`, *optional*):
            Id of the LoRA's repository on the Hub, if it has one.
        dataset (`str`, *optional*):
            Id of the dataset.
        prompt (`str`, *optional*):
            A prompt to show, where there are no samples.
        with_references (`bool`, *optional*, defaults to `True`):
            Whether it was trained with reference images, if the model takes some at all.
        resolution (`int`, *optional*):
            Side of the square that was trained on.
        state (`TrainerState`, *optional*):
            State of the run: its steps and its logs.
    """
    pipeline, denoiser = family.pipeline, family.denoiser
    least, most = family.reference_counts
    # what `sample_with_references` has to be told of the training
    helper = {key: getattr(args, key) for key in ("reference_positions", "reference_resolution")}
    call = family.call_settings(resolution or family.default_resolution)
    if args.guidance_scale is not None and getattr(denoiser.config, "guidance_embeds", False):
        call["guidance_scale"] = args.guidance_scale
    history = [] if state is None else state.log_history
    metrics = series(history)
    facts = {
        "name": name,
        "method": method,
        "paper": paper,
        "tags": sorted(
            {
                "diffusers",
                "diffusers-training",
                "generated_from_trainer",
                "lora",
                "template:sd-lora",
                "trl-focus",
                *tags,
            }
        ),
        "repo": repo,
        "revision": args.hub_revision,
        "dataset": dataset,
        "base": base_model(
            family.model_name, None if repo or args.push_to_hub else Path(folder), args.model_init_kwargs or {}
        ),
        "pipeline": type(pipeline).__name__,
        "modular": isinstance(pipeline, ModularPipeline),
        "unused_blocks": getattr(family, "unused_blocks", ()),
        "dtype": str(denoiser.dtype if denoiser.dtype.itemsize == 2 else torch.float32).removeprefix("torch."),
        "references": {"least": least, "most": most} if most != 0 else None,
        "with_references": most != 0 and (with_references or least > 0),
        "helper": {key: value for key, value in helper.items() if value} if family.sampled_by_helper else None,
        "call": call,
        "prompt": prompt,
        "settings": _settings(args, lora, state, resolution),
        "metrics": summary(metrics),
        "curve": {name: thinned(points) for name, points in metrics.items()},
        "versions": {"trl-focus": __version__, **{package: version(package) for package in PACKAGES}},
        "links": _tracker_links(),
    }
    return json.loads(json.dumps(facts, default=str))


def write_card(folder: str | Path, facts: dict[str, Any] | None = None) -> ModelCard:
    """
    Writes the model card of a folder, with the curve of training if matplotlib is there to draw it.

    Args:
        folder (`str` or `Path`):
            Folder of a LoRA: `output_dir`, or a checkpoint.
        facts (`dict`, *optional*):
            From [`card_facts`]. By default those that the last card of the folder was made of.

    Raises:
        FileNotFoundError: If none are given and none are there.
        ValueError: If those that are there are of another version, or no facts.
    """
    folder = Path(folder)
    path = folder / FACTS
    given = facts is not None
    if given:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, indent=1, ensure_ascii=False))
    elif not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {FACTS}, of which its card is made: give the `output_dir` of a run, or a checkpoint in it, that a "
            "trainer of trl-focus has saved."
        )
    try:
        facts = json.loads(path.read_text())
        draw_curve(facts["curve"], folder / CURVE)
        card = model_card(facts, folder)
    except (KeyError, TypeError) as error:
        if given:
            raise
        raise ValueError(
            f"{path} does not hold the facts that this version makes a card of ({type(error).__name__}: {error}). Save the model "
            "anew, or correct the file."
        ) from error
    card.save(folder / "README.md")
    return card


def model_card(facts: dict[str, Any], folder: Path) -> ModelCard:
    """The model card of these facts, with the pictures of this folder."""
    samples = read_samples(folder)
    base = facts["base"]
    data = ModelCardData(
        library_name="diffusers",
        base_model=base.get("id"),
        base_model_relation="adapter" if "id" in base else None,
        pipeline_tag="image-to-image" if facts["with_references"] else "text-to-image",
        datasets=facts["dataset"],
        tags=facts["tags"],
        widget=[
            {"text": sample["prompt"], "output": {"url": f"{SAMPLES}/{sample['file_name']}"}} for sample in samples
        ]
        or None,
        **{key: base.get(key) for key in ("license", "license_name", "license_link")},
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **{key: value for key, value in facts.items() if key != "base"},
        base=base,
        base_name=base.get("id") or base.get("folder", "").rsplit("/")[-1] or facts["pipeline"],
        samples=samples,
        snippet=snippet(facts, samples),
        curve_picture=CURVE if panels(facts["curve"]) and (folder / CURVE).is_file() else None,
        sheet=last_picture(folder, SAMPLES),
        focus_maps=last_picture(folder, FOCUS_MAPS),
    )


def _settings(args, lora: LoraConfig, state, resolution: int | None) -> dict[str, str]:
    settings = {key: getattr(args, key) for key in SETTINGS if getattr(args, key, None) is not None}
    settings["resolution"] = resolution or args.resolution
    for field in fields(args):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name in FURTHER_SETTINGS and getattr(args, field.name) != default:
            settings[field.name] = getattr(args, field.name)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    settings["pairs in an update"] = batch
    if state is not None and state.global_step:
        settings["updates"] = state.global_step
        if state.epoch is not None:
            settings["epochs"] = f"{state.epoch:.3g}"
    settings["precision"] = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    targets = lora.target_modules
    settings["LoRA rank, alpha"] = f"{lora.r}, {lora.lora_alpha}"
    settings["LoRA on"] = targets if isinstance(targets, str) else sorted(targets)
    return {key: _shown(value) for key, value in settings.items()}


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "value", value))


def _tracker_links() -> dict[str, str]:
    run = getattr(sys.modules.get("wandb"), "run", None)
    return {"Weights & Biases": run.url} if run is not None and run.url else {}
