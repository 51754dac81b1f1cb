# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.1.0.dev0"

# Public name -> module that defines it. Imported on first use: `import trl_focus` must not pull in torch.
_PUBLIC = {
    "DiffusionDPOConfig": "trainer.diffusion_dpo_config",
    "DiffusionDPOTrainer": "trainer.diffusion_dpo_trainer",
    "FocusDPOConfig": "trainer.focus_dpo_config",
    "FocusDPOTrainer": "trainer.focus_dpo_trainer",
    "FocusContext": "focus.maps",
    "FocusDiagnostic": "trainer.diagnostic",
    "FocusMapCallback": "callbacks",
    "FocusScheduleCallback": "callbacks",
    "LogFocusMapsCallback": "callbacks",
    "LogSamplesCallback": "callbacks",
    "PreferenceCollapseCallback": "callbacks",
    "focus_diagnostic": "trainer.diagnostic",
    "from_folder": "data.converters",
    "from_pick_a_pic": "data.converters",
    "push_preference_dataset": "hub.dataset",
    "sample_with_references": "sampling",
    "score_feature_blocks": "trainer.feature_blocks",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from .callbacks import (
        FocusMapCallback,
        FocusScheduleCallback,
        LogFocusMapsCallback,
        LogSamplesCallback,
        PreferenceCollapseCallback,
    )
    from .data.converters import from_folder, from_pick_a_pic
    from .focus.maps import FocusContext
    from .hub.dataset import push_preference_dataset
    from .sampling import sample_with_references
    from .trainer.diagnostic import FocusDiagnostic, focus_diagnostic
    from .trainer.diffusion_dpo_config import DiffusionDPOConfig
    from .trainer.diffusion_dpo_trainer import DiffusionDPOTrainer
    from .trainer.feature_blocks import score_feature_blocks
    from .trainer.focus_dpo_config import FocusDPOConfig
    from .trainer.focus_dpo_trainer import FocusDPOTrainer


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__():
    return [*globals(), *__all__]
