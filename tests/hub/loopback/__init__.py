# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
A Hub on 127.0.0.1, in memory: it speaks as much of the Hub's HTTP as `huggingface_hub`, `datasets` and diffusers use to push
and to load, and fails where it is told to.
"""

from .faults import Fault
from .repos import Repo
from .server import LoopbackHub


__all__ = ["Fault", "LoopbackHub", "Repo"]
