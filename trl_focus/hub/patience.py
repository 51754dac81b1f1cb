# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Requests to a Hub that may not answer."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from huggingface_hub import get_session, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers.utils import logging


logger = logging.get_logger(__name__)

WAITS = (2.0, 8.0)  # seconds between attempts; huggingface_hub's own retries of a request come before
SILENCE = 60.0  # seconds after which a connection that says nothing is given up
FINAL = (OfflineModeIsEnabled, HFValidationError, LocalTokenNotFoundError)  # what another attempt would not change

T = TypeVar("T")


def attempt(function: Callable[[], T], what: str, waits: Sequence[float] = WAITS, token: str | None = None) -> T:
    """
    Calls a function that asks the Hub, again after each of the waits if it fails in a way that may pass.

    Args:
        what (`str`):
            What it does, for the log.
        token (`str`, *optional*):
            Kept out of the log.

    Raises:
        Exception: What it raised last.
    """
    for wait in (*waits, None):
        try:
            _limit_silence()
            return function()
        except Exception as error:  # of httpx or httpx2, by the release of huggingface_hub
            if wait is None or is_final(error):
                raise
            logger.warning(f"{what} failed, and is tried again in {wait:g} s: {describe(error, token)}")
        time.sleep(wait)


def is_final(error: Exception) -> bool:
    """Whether another attempt would fail as well: without network by choice, or without the right."""
    if isinstance(error, RepositoryNotFoundError):
        return False  # also said of one that was only just made
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    return isinstance(error, FINAL) or status in (400, 401, 402, 403)


def describe(error: Exception, token: str | None = None) -> str:
    """An error in a line, without the token: some cite the header that it stands in."""
    lines = str(error).strip().splitlines() or ["no answer"]
    text = f"{type(error).__name__}: {' '.join(filter(None, map(str.strip, lines)))}"
    for secret in (token, get_token()):
        if secret and secret.strip():  # a line's end that came with it is cited in another way
            text = text.replace(secret.strip(), "<token>")
    return text if text.endswith(".") else f"{text}."


def _limit_silence():
    # huggingface_hub's client waits for ever; it makes a new one after a connection error
    session = get_session()
    if session.timeout.read is None:
        session.timeout = SILENCE
