# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Kinds of arguments that commands share."""

import json
from argparse import ArgumentTypeError
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
