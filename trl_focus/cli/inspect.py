# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from .arguments import add_dataset, count


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "inspect",
        help="look at preference pairs in a browser, and flip or drop them",
        description="Serve a page on this machine that shows preference pairs with their references, masks and focus maps, "
        "and saves what is left of them to a new folder.",
    )
    parser.add_argument(
        "dataset",
        help="id on the Hub, a folder, or the folder of a run that was trained on a dataset of the Hub: then its model and its "
        "pictures are shown as well",
    )
    parser.add_argument(
        "--model",
        help="pipeline that matches references, which focus maps then show: its id on the Hub, its folder, or the folder of "
        "a run, whose LoRA is put on its base (default: none, focus maps show masks and detail)",
    )
    add_dataset(parser)
    parser.add_argument("--crop", choices=("none", "center"), default="none", help="as in training (default: none)")
    parser.add_argument("--resolution", type=count, default=512, help="of the focus maps (default: 512)")
    parser.add_argument("--num_proc", type=count, help="processes that read rows")
    parser.add_argument("--port", type=count, help="port to listen on (default: the first that is free from 7860 on)")
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
    name, model = args.dataset, args.model
    if (facts := _facts(name)) is not None:
        name, model = facts["dataset"], model or name
        if name is None:
            raise InputError(
                f"{args.dataset} is the folder of a run that names no dataset on the Hub: give the dataset's folder, and this "
                "one as --model"
            )
    with refusals():
        dataset = load_preferences(name, args.config, args.split, args.revision, columns=args.columns)
        dataset = dataset if args.rows is None else dataset.select(range(min(args.rows, len(dataset))))
        stretch = args.crop == "none"
        matcher = _matcher(model, args.resolution, stretch) if model else None
        view = View(dataset, name, matcher, args.resolution, stretch, args.num_proc, _pictures(model))
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


def _facts(folder: str | None) -> dict | None:
    """What a run says of itself in its folder; `None` for what is no such folder."""
    import json
    from pathlib import Path

    from ..errors import refusals
    from ..hub.card import FACTS

    if folder is None or not (file := Path(folder, FACTS)).is_file():
        return None
    with refusals():
        return json.loads(file.read_text())


def _pictures(folder: str | None) -> list:
    """Pictures that callbacks have written to the folder of a run, the last ones first."""
    from pathlib import Path

    from ..hub.pictures import FOCUS_MAPS, SAMPLES

    if _facts(folder) is None:
        return []
    found = [file for name in (SAMPLES, FOCUS_MAPS) for file in Path(folder, name).glob("step-*.png")]
    return sorted(found, key=lambda file: (file.stem, file.parent.name), reverse=True)


def _matcher(name: str, resolution: int, stretch: bool):
    """Loads a pipeline, or that of a run with its LoRA, onto the accelerator where there is one."""
    from pathlib import Path

    import torch

    from ..errors import InputError
    from ..inspect.maps import Matcher
    from ..trainer.focus_dpo_config import FocusDPOConfig
    from ..trainer.pipeline import load_pipeline

    model, kwargs, positions = name, {}, None
    if (facts := _facts(name)) is not None:
        base = facts["base"]
        if not base.get("id") and not base.get("folder"):
            raise InputError(f"{name} does not say which model its LoRA is for: give that model's id or folder")
        model, kwargs = base.get("id") or str(Path(name, base["folder"])), base["load"]
        positions = (facts["helper"] or {}).get("reference_positions")
    gpu = torch.accelerator.is_available()
    dtype = {"dtype": torch.bfloat16} if gpu else {}
    settings = FocusDPOConfig(
        output_dir="",
        use_cpu=not gpu,
        model_init_kwargs={**kwargs, **dtype},
        reference_positions=positions,
        report_to="none",
    )
    family = load_pipeline(model, settings)
    if facts is not None:
        family.pipeline.load_lora_weights(name)
    if gpu:
        family.pipeline.to(torch.accelerator.current_accelerator())
    return Matcher(family, resolution, stretch)
