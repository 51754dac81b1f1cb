# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import re
from dataclasses import dataclass, field


@dataclass
class Fault:
    """
    What goes wrong, and with which requests.

    Args:
        method (`str`), path (`str`):
            Regular expressions: of the method (all of it) and of the path (any part of it).
        times (`int`):
            How often it happens; -1 is always.
        after (`int`):
            How many such requests are served before.
        status (`int`):
            Is answered instead, with `headers`.
        hang (`float`):
            Seconds of silence, after which the connection is closed without an answer.
        cut (`bool`):
            Closes the connection in the middle: of what comes in, or, where nothing comes in, of what goes out.
        lost (`bool`):
            Does what is asked, and closes the connection without an answer.
    """

    method: str
    path: str
    times: int = 1
    after: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: float = 0.0
    cut: bool = False
    lost: bool = False
    happened: int = field(default=0, init=False)

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request is struck; counts it if it is one of those meant."""
        if self.happened == self.times or not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        if self.after:
            self.after -= 1
            return False
        self.happened += 1
        return True
