# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from .edits import Edits, edited, flip, save, toggle
from .findings import Findings, find


__all__ = ["Edits", "Findings", "edited", "find", "flip", "save", "toggle"]
