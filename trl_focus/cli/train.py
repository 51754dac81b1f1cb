# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from argparse import REMAINDER, RawDescriptionHelpFormatter


METHODS = {"focus": "focus_dpo", "dpo": "diffusion_dpo"}

DESCRIPTION = """\
Train a LoRA on preference pairs: `focus` by FocusDPO, `dpo` by Diffusion-DPO.

    trl-focus train focus --config run.yaml --learning_rate 1e-5 --num_processes 2

Settings come from the file and from the command line, which wins. `trl-focus train focus --help` lists them. Options of
`accelerate launch`, and `--accelerate_config FILE_OR_PRESET`, may stand among them in either place."""


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "train",
        help="train a LoRA on preference pairs",
        description=DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("arguments", nargs=REMAINDER, metavar="...", help="settings of the run")
    return parser


def run(args) -> int:
    from importlib import import_module

    from ..scripts.arguments import parse

    name = f"trl_focus.scripts.{METHODS[args.method]}"
    script = import_module(name)
    parsed = parse(script.make_parser(prog=f"trl-focus train {args.method}"), args.arguments)
    if parsed.launch or _is_launched_by_default():
        return _launch(name, parsed.launch, parsed.script)
    script.main(*parsed.arguments)
    return 0


def _is_launched_by_default() -> bool:
    """Whether there is more to start than this process."""
    import os

    import torch
    from accelerate.commands.config.config_args import default_config_file

    return os.path.isfile(default_config_file) or torch.accelerator.device_count() > 1


def _launch(module: str, launch: list[str], arguments: list[str]) -> int:
    """Starts a script's processes, and returns what they agree on: 2 where they refused their input."""
    from subprocess import CalledProcessError

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from ..errors import refusals

    try:
        with refusals():
            args = launch_command_parser().parse_args([*launch, "--module", module, *arguments])
        launch_command(args)
    except CalledProcessError as error:
        return 2 if error.returncode == 2 else 1
    except ChildFailedError as error:
        return 2 if any(failure.exitcode == 2 for failure in error.failures.values()) else 1
    return 0
