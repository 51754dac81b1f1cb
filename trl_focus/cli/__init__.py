# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The command `trl-focus`. What a command needs is imported when it runs: help comes at once."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from .. import __version__
from ..errors import InputError
from . import card, env, evaluate, families, inspect, masks, pairs, prepare, rounds, train, validate


COMMANDS = (pairs, masks, inspect, validate, prepare, train, rounds, evaluate, families, card, env)


def make_parser() -> ArgumentParser:
    parser = ArgumentParser("trl-focus", description="Preference tuning for image models.")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers).set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Command line, without the program. Defaults to the process's own.

    Returns:
        `int`: 0 where it is done, 1 where it failed, 2 where it was given what it can't use. A failure that was not
        foreseen raises.
    """
    args = make_parser().parse_args(argv)
    try:
        return args.run(args)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except ConnectionError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
