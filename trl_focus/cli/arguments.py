# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Arguments that commands share."""

import json
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any


def mapping(text: str) -> dict[str, Any]:
    """JSON of a dictionary."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArgumentTypeError(f'{text!r} is not JSON, as in {{"name": "value"}}') from error
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"{text!r} is no mapping of names")
    return value


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def add_dataset(parser: ArgumentParser):
    """Which rows of a dataset are read, and under which names."""
    parser.add_argument("--config", help="configuration of the dataset")
    parser.add_argument("--split", default="train", help="split to read (default: train)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--rows", type=count, metavar="N", help="read the first N rows (default: all)")
    parser.add_argument(
        "--columns", type=mapping, metavar="JSON", help='names of the dataset: {"prompt": "caption", ...}'
    )
