# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import math

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState

from trl_focus.callbacks import FocusMapCallback, PreferenceCollapseCallback


class Run:
    """Feeds logs to the callback, and tells after which of them it spoke."""

    def __init__(self, caplog, **kwargs):
        self.callback = PreferenceCollapseCallback(**kwargs)
        self.control = TrainerControl()
        self.caplog = caplog

    def log(self, **logs):
        self.caplog.clear()
        self.callback.on_log(None, TrainerState(global_step=70), self.control, logs=logs)
        return [record.levelname for record in self.caplog.records] == ["WARNING"]

    def logs(self, errors, accuracies=0.8):
        if not isinstance(accuracies, list):
            accuracies = [accuracies] * len(errors)
        return [
            self.log(**{"errors/chosen": error, "rewards/accuracies": accuracy})
            for error, accuracy in zip(errors, accuracies, strict=True)
        ]


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_speaks_after_twice_as_many_logs_as_its_patience(patience, caplog):
    errors = [0.01 * number for number in range(1, 2 * patience + 1)]
    assert Run(caplog, patience=patience).logs(errors) == [False] * (2 * patience - 1) + [True]


def test_speaks_again_only_after_as_many_logs_more(caplog):
    spoke = Run(caplog, patience=1).logs([1, 2, 3, 4, 5])
    assert spoke == [False, True, False, True, False]


def test_message_says_where_how_much_and_what_to_do(caplog):
    Run(caplog, patience=2).logs([0.01, 0.02, 0.03, 0.039], [0.7, 0.8, 0.9, 0.9])
    message = caplog.records[0].getMessage()
    for part in ["Step 70", "2 logs", "3.45e-02", "0.90", "sft", "rejected_error_bound", "beta", "learning_rate"]:
        assert part in message


@pytest.mark.parametrize(
    "errors,accuracies",
    [
        ([6, 5, 4, 3, 2, 1], 0.9),  # falls
        ([1, 1, 1, 1, 1, 1], 0.9),  # stays
        ([-6, -5, -4, -3, -2, -1], 0.9),  # rises, but is better than the reference's
        ([-1, 0, 1, 2, -0.1, 3], 0.9),  # not above the reference's throughout
        ([1, 2, 3, 4, 5, 6], [0.9, 0.9, 0.8, 0.7, 0.6, 0.6]),  # accuracy falls as well: it is not winning
        ([1, 2, 3, 4, 5, 6], 0.4),  # it does not win at all
        ([1, 2, 3, math.nan, 4, 5], 0.9),
    ],
)
def test_silent(errors, accuracies, caplog):
    run = Run(caplog, patience=3, stop=True)
    assert not any(run.logs(errors, accuracies))
    assert not run.control.should_training_stop


def test_noise_does_not_hide_a_rise_nor_make_one(caplog):
    """As logs are: the chosen error rises slowly under noise, or hovers at the reference's."""
    rng = np.random.default_rng(0)
    spoke = {0.0005: 0, 0.0: 0}
    for slope in spoke:
        for _ in range(50):
            errors = slope * np.arange(50) + rng.normal(0, 0.003, 50)
            accuracies = (0.5 + 0.005 * np.arange(50) + rng.normal(0, 0.1, 50)).clip(0, 1)
            spoke[slope] += any(Run(caplog).logs(errors.tolist(), accuracies.tolist()))
    assert spoke[0.0005] > 45 and spoke[0.0] < 10


@pytest.mark.parametrize("stop", [False, True])
def test_stop(stop, caplog):
    run = Run(caplog, patience=2, stop=stop)
    run.logs([1, 2, 3])
    assert not run.control.should_training_stop
    run.logs([4])
    assert run.control.should_training_stop is stop


def test_defaults_are_eight_logs_and_no_stop(caplog):
    run = Run(caplog)
    assert run.logs([*range(1, 17)]) == [False] * 15 + [True]
    assert not run.control.should_training_stop


@pytest.mark.parametrize(
    "other", [{}, {"train_runtime": 3.0}, {"eval_errors/chosen": 0.0, "eval_rewards/accuracies": 0.0}, {"loss": 0.6}]
)
def test_logs_without_the_metrics_change_nothing(other, caplog):
    run = Run(caplog, patience=2)
    spoke = []
    for error in (1, 2, 3, 4):
        assert not run.log(**other)
        spoke += run.logs([error])
    assert spoke == [False, False, False, True]


def test_logs_may_be_missing(caplog):
    callback = PreferenceCollapseCallback()
    callback.on_log(None, TrainerState(), TrainerControl())
    callback.on_log(None, TrainerState(), TrainerControl(), logs={"errors/chosen": 1.0})
    callback.on_log(None, TrainerState(), TrainerControl(), logs={"rewards/accuracies": 1.0})


def test_map_callback_leaves_the_maps_by_default():
    assert FocusMapCallback().on_focus_maps(None, TrainerState(), TrainerControl(), {}, {}) is None
