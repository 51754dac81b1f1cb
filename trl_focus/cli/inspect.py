# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from .validate import _columns, _count


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "inspect",
        help="look at preference pairs in a browser, and flip or drop them",
        description="Serve a page on this machine that shows preference pairs with their references, masks and focus maps, "
        "and saves what is left of them to a new folder.",
    )
    parser.add_argument("dataset", help="id on the Hub, or a folder")
    parser.add_argument(
        "--model",
        help="pipeline that matches references, which focus maps then show: its id on the Hub, its folder, or the folder of "
        "a run, whose LoRA is put on its base (default: none, focus maps show masks and detail)",
    )
    parser.add_argument("--config", help="configuration of the dataset")
    parser.add_argument("--split", default="train", help="split to read (default: train)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--rows", type=_count, metavar="N", help="read the first N rows (default: all)")
    parser.add_argument(
        "--columns", type=_columns, metavar="JSON", help='names of the dataset: {"prompt": "caption", ...}'
    )
    parser.add_argument("--crop", choices=("none", "center"), default="none", help="as in training (default: none)")
    parser.add_argument("--resolution", type=_count, default=512, help="of the focus maps (default: 512)")
    parser.add_argument("--num_proc", type=_count, help="processes that read rows")
    parser.add_argument("--port", type=_count, help="port to listen on (default: the first that is free from 7860 on)")
    return parser


def run(args) -> int:
    import sys
    from importlib.util import find_spec

    from datasets import disable_progress_bars
    from rich.console import Console

    from ..data.loading import load_preferences
    from ..errors import InputError, refusals
    from ..inspect.page import View, launch

    if find_spec("gradio") is None:
        raise InputError('the page needs gradio: pip install "trl-focus[inspect]"')
    if not sys.stderr.isatty():
        disable_progress_bars()
    with refusals():
        dataset = load_preferences(args.dataset, args.config, args.split, args.revision, columns=args.columns)
        dataset = dataset if args.rows is None else dataset.select(range(min(args.rows, len(dataset))))
        matcher = _matcher(args.model, args.resolution, args.crop == "none") if args.model else None
        view = View(dataset, args.dataset, matcher, args.resolution, args.crop == "none", args.num_proc)
    console = Console(highlight=False)
    with refusals():  # a port that is taken
        address = launch(view, args.port, wait=False)
    console.print(f"{len(dataset)} pairs at {address} (Ctrl+C stops it)", soft_wrap=True)
    try:
        _wait()
    except KeyboardInterrupt:
        console.print("Stopped. What was not saved is gone.")
    return 0


def _wait():
    from threading import Event

    Event().wait()


def _matcher(name: str, resolution: int, stretch: bool):
    """Loads a pipeline, or that of a run with its LoRA, onto the accelerator where there is one."""
    import json
    from pathlib import Path

    import torch

    from ..hub.card import FACTS
    from ..inspect.maps import Matcher
    from ..trainer import FocusDPOConfig
    from ..trainer.pipeline import load_pipeline

    model, kwargs, lora = name, {}, None
    if (file := Path(name, FACTS)).is_file():
        base = json.loads(file.read_text())["base"]
        if not base.get("id") and not base.get("folder"):
            from ..errors import InputError

            raise InputError(f"{name} does not say which model its LoRA is for: give the model's own id or folder")
        model, kwargs, lora = base.get("id") or str(Path(name, base["folder"])), base["load"], name
    gpu = torch.accelerator.is_available()
    dtype = {"dtype": torch.bfloat16} if gpu else {}
    family = load_pipeline(
        model, FocusDPOConfig(output_dir="", use_cpu=not gpu, model_init_kwargs={**kwargs, **dtype})
    )
    if lora:
        family.pipeline.load_lora_weights(lora)
    if gpu:
        family.pipeline.to(torch.accelerator.current_accelerator())
    return Matcher(family, resolution, stretch)
