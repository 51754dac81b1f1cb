# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What is told apart at the command line: an input that can't be used, and a failure."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """
    What the user gave can't be used. The message says what it is and what to do; the commands print it without a
    traceback, and exit with 2.
    """


def is_input(error: Exception) -> bool:
    """Whether an error that was raised before training began is about what was given, and not about the machine."""
    from huggingface_hub.errors import LocalEntryNotFoundError  # here, since every command imports this file

    if isinstance(error, LocalEntryNotFoundError):  # a FileNotFoundError, of a Hub that can't be reached
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in (400, 401, 403, 404)
    if isinstance(error, OSError):
        # The bare one, without a number: what diffusers and transformers raise for models that they don't find
        known = isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError)
        return known or (type(error) is OSError and error.errno is None)
    return isinstance(error, TypeError | ValueError | ImportError)


@contextmanager
def refusals() -> Iterator[None]:
    """
    While arguments, data and model are read: what is refused there becomes an [`InputError`]. A server that fails, a full
    disk, or an exhausted memory stays what it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_input(error):
            raise
        raise InputError(str(error) or type(error).__name__) from error
