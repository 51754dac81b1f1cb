# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from .annotate import add_masks
from .finding import subject_finder
from .settings import MaskSettings


__all__ = ["MaskSettings", "add_masks", "subject_finder"]
