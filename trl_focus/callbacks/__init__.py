# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from .collapse import PreferenceCollapseCallback
from .focus_maps import FocusMapCallback, FocusScheduleCallback, LogFocusMapsCallback
from .samples import LogSamplesCallback


__all__ = [
    "FocusMapCallback",
    "FocusScheduleCallback",
    "LogFocusMapsCallback",
    "LogSamplesCallback",
    "PreferenceCollapseCallback",
]
