# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The parts of TRL, most of them private, that this package builds on, imported here and nowhere else."""

from trl import TrlParser
from trl.cli.accelerate_config import resolve_accelerate_config_argument
from trl.trainer.base_config import _BaseConfig
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import disable_dropout_in_model


__all__ = [
    "TrlParser",
    "_BaseConfig",
    "_BaseTrainer",
    "disable_dropout_in_model",
    "resolve_accelerate_config_argument",
]
