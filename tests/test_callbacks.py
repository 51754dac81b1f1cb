# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import math

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
def test_speaks_after_as_many_rises_as_its_patience(patience, caplog):
    errors = [0.01 * number for number in range(1, patience + 2)]  # the first one is no rise
    assert Run(caplog, patience=patience).logs(errors) == [False] * patience + [True]


def test_speaks_again_only_after_as_many_rises_more(caplog):
    spoke = Run(caplog, patience=2).logs([1, 2, 3, 4, 5, 6, 7])
    assert spoke == [False, False, True, False, True, False, True]


def test_message_says_where_how_much_and_what_to_do(caplog):
    Run(caplog, patience=2).logs([0.01, 0.02, 0.0345], [0.7, 0.8, 0.9])
    message = caplog.records[0].getMessage()
    for part in ["Step 70", "2 logs", "3.45e-02", "0.90", "sft", "rejected_error_bound", "beta", "learning_rate"]:
        assert part in message


@pytest.mark.parametrize(
    "errors,accuracies",
    [
        ([4, 3, 2, 1, 0.5], 0.9),  # falls
        ([1, 1, 1, 1, 1], 0.9),  # stays
        ([-5, -4, -3, -2, -1], 0.9),  # rises, but is better than the reference's
        ([1, 2, 3, 2.5, 3, 4], 0.9),  # a fall in between
        ([1, 2, 3, 4, 5], [0.9, 0.8, 0.7, 0.6, 0.55]),  # accuracy falls as well: it is not winning
        ([1, 2, 3, 4, 5], 0.4),  # it does not win at all
        ([1, 2, 3, math.nan, 4, 5], 0.9),
    ],
)
def test_silent(errors, accuracies, caplog):
    run = Run(caplog, patience=3, stop=True)
    assert not any(run.logs(errors, accuracies))
    assert not run.control.should_training_stop


def test_negative_errors_are_no_rises_once_positive_ones_come(caplog):
    # rises to a positive error count from there on: 0.1, 0.2, 0.3
    spoke = Run(caplog, patience=3).logs([-3, -2, -1, 0.1, 0.2, 0.3])
    assert spoke == [False] * 5 + [True]


def test_rising_accuracy_counts(caplog):
    assert Run(caplog, patience=3).logs([1, 2, 3, 4], [0.5, 0.6, 0.7, 0.8])[-1]


@pytest.mark.parametrize("stop", [False, True])
def test_stop(stop, caplog):
    run = Run(caplog, patience=2, stop=stop)
    run.logs([1, 2])
    assert not run.control.should_training_stop
    run.logs([3])
    assert run.control.should_training_stop is stop


def test_defaults_are_three_rises_and_no_stop(caplog):
    run = Run(caplog)
    assert run.logs([1, 2, 3, 4]) == [False, False, False, True]
    assert not run.control.should_training_stop


@pytest.mark.parametrize(
    "other", [{}, {"train_runtime": 3.0}, {"eval_errors/chosen": 0.0, "eval_rewards/accuracies": 0.0}, {"loss": 0.6}]
)
def test_logs_without_the_metrics_change_nothing(other, caplog):
    run = Run(caplog, patience=2)
    spoke = []
    for error in (1, 2, 3):
        assert not run.log(**other)
        spoke += run.logs([error])
    assert spoke == [False, False, True]


def test_logs_may_be_missing(caplog):
    callback = PreferenceCollapseCallback()
    callback.on_log(None, TrainerState(), TrainerControl())
    callback.on_log(None, TrainerState(), TrainerControl(), logs={"errors/chosen": 1.0})
    callback.on_log(None, TrainerState(), TrainerControl(), logs={"rewards/accuracies": 1.0})


def test_map_callback_leaves_the_maps_by_default():
    assert FocusMapCallback().on_focus_maps(None, TrainerState(), TrainerControl(), {}, {}) is None
