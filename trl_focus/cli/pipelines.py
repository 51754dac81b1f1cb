# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The pipeline that commands draw with, and its arguments."""

from .arguments import mapping


def add_arguments(parser):
    parser.add_argument("--model", help="pipeline to draw with: id on the Hub, or a folder")
    parser.add_argument("--lora", help="LoRA to load into it: id on the Hub, or a folder")
    parser.add_argument(
        "--call",
        type=mapping,
        default={},
        metavar="JSON",
        help='what the pipeline is called with, as in {"num_inference_steps": 25, "height": 512}; also `reference_positions` '
        "and `reference_resolution`, as in training",
    )
    parser.add_argument(
        "--model_init_kwargs",
        type=mapping,
        default={},
        metavar="JSON",
        help='what it is loaded with, as in {"revision": "v1", "dtype": "bfloat16"}',
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image of each row (default: 0)")
    parser.add_argument("--offload", action="store_true", help="keep on the GPU only what is computing")


def content_of_lora(lora: str | None) -> str | None:
    """A hash of a LoRA in a folder, or in a file: trained anew, it is another one."""
    from hashlib import sha256
    from pathlib import Path

    path = Path(lora or "")
    if lora is None or not path.exists():
        return None
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return sha256(b"".join(sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:16]


def load_lora(pipeline, lora: str):
    """
    Loads a LoRA into a pipeline.

    Raises:
        ValueError, OSError: If there is none, or it is one of another model: diffusers passes over weights that it does not know.
    """
    try:
        pipeline.load_lora_weights(lora)
    except ValueError as error:  # which does not say of what
        raise ValueError(f"the LoRA {lora} can't be loaded: {error}") from error
    if not any(pipeline.get_list_adapters().values()):
        raise ValueError(f"{lora} has no weights for {type(pipeline).__name__}: it is a LoRA of another model")


def load(args, folder: str):
    """
    The pipeline, on its device.

    Raises:
        ValueError: If it is of no known family, or can't be called with `--call`.
    """
    import torch

    from ..trainer.diffusion_dpo_config import DiffusionDPOConfig
    from ..trainer.pipeline import load_pipeline

    config = DiffusionDPOConfig(output_dir=folder, model_init_kwargs=args.model_init_kwargs, report_to="none")
    family = load_pipeline(args.model, config)
    known = {*family.call_defaults, "reference_positions", "reference_resolution"} - {"prompt", "image", "generator"}
    if unknown := [name for name in args.call if name not in known]:
        raise ValueError(
            f"`--call` holds {', '.join(unknown)}; {type(family.pipeline).__name__} can be called with "
            f"{', '.join(sorted(known))}"
        )
    pipeline = family.pipeline
    pipeline.set_progress_bar_config(disable=True)
    if args.offload:
        pipeline.enable_model_cpu_offload()
    else:
        pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    return pipeline
