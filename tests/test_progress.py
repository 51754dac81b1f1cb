# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""A bar on a terminal, which is a pseudo-terminal here; lines of plain text anywhere else."""

import os
import pty
import sys
import threading

import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState

from tests.fixtures.pairs import make_pairs
from tests.fixtures.trainers import make_trainer
from trl_focus.callbacks.progress import LogLinesCallback, ProgressBarCallback


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor


class Terminal:
    """A pseudo-terminal in the place of a stream, and what was written to it."""

    def __init__(self, monkeypatch, *streams: str):
        self._master, slave = pty.openpty()
        self._file = open(slave, "w")
        self._text = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        for stream in streams:
            monkeypatch.setattr(sys, stream, self._file)

    def _read(self):
        while True:
            try:
                data = os.read(self._master, 4096)
            except OSError:  # the other end was closed
                data = b""
            if not data:
                return
            self._text += data

    def text(self) -> str:
        """All of it; nothing is written after."""
        self._file.close()
        self._reader.join()
        os.close(self._master)
        return self._text.decode()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("FORCE_COLOR", "1")  # set by many CI services; it makes no terminal of a file


def trainer_of(tmp_path, **kwargs):
    evaluation = {"eval_dataset": make_pairs(4, n_references=2), "eval_strategy": "steps", "eval_steps": 2}
    return make_trainer(output_dir=tmp_path, **{"disable_tqdm": False, "max_steps": 4, **evaluation, **kwargs})


class Say(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print(f"said at {state.global_step}")


class Fail(TrainerCallback):
    def __init__(self, error):
        self.error = error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise self.error


def test_terminal_shows_a_bar_with_the_metrics(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    terminal = Terminal(monkeypatch, "stdout", "stderr")
    trainer.train()
    text = terminal.text()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert f"loss {logs[-1]['loss']:.3g}  accuracy {logs[-1]['rewards/accuracies']:.3g}  margin " in text
    assert "4/4" in text and text.count("eval_rewards/accuracies") == 2
    assert "step 1/4" not in text  # what the bar shows is not printed besides
    assert text.count(HIDE) == text.count(SHOW) == 1 and text.index(HIDE) < text.index(SHOW)


def test_elsewhere_are_plain_lines(tmp_path, capfd):
    trainer = trainer_of(tmp_path)
    capfd.readouterr()
    trainer.train()
    out, err = capfd.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == [
        f"step {step}/4 (epoch {step / 4:.4g})"
        for step in (1, 2, 2, 3, 4, 4, 4)  # two evaluations, and the end
    ]
    assert not {"\x1b", "\r"} & {*(out + err)} and "training" not in err
    first = trainer.state.log_history[0]
    assert f"loss {first['loss']:.4g}, " in out and f"rewards/margins {first['rewards/margins']:.4g}, " in out


def test_stdout_in_a_file_gets_lines_beside_the_bar(tmp_path, monkeypatch, capfd):
    """And so does what others print, which a bar would draw to itself."""
    trainer = trainer_of(tmp_path, callbacks=[Say()])
    capfd.readouterr()
    terminal = Terminal(monkeypatch, "stderr")
    trainer.train()
    text, out = terminal.text(), capfd.readouterr().out
    assert "4/4" in text and "said" not in text
    assert "step 1/4" in out and "said at 1\n" in out and "\x1b" not in out


def test_no_bar_where_none_is_wanted(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, disable_tqdm=True)
    terminal = Terminal(monkeypatch, "stdout", "stderr")
    trainer.train()
    text = terminal.text()
    assert "step 1/4" in text and HIDE not in text


@pytest.mark.parametrize("error", [FloatingPointError("not finite"), KeyboardInterrupt()])
def test_an_error_gives_the_terminal_back(tmp_path, monkeypatch, error):
    trainer = trainer_of(tmp_path, callbacks=[Fail(error)])
    terminal = Terminal(monkeypatch, "stdout", "stderr")
    with pytest.raises(type(error)):
        trainer.train()
    text = terminal.text()
    assert text.count(HIDE) == text.count(SHOW) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_alone(tmp_path, monkeypatch, fails):
    trainer = trainer_of(tmp_path)
    terminal = Terminal(monkeypatch, "stdout", "stderr")
    if fails:
        monkeypatch.setattr(trainer, "check_finite", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.evaluate()
    else:
        trainer.evaluate()
    text = terminal.text()
    assert "evaluation" in text and text.count(HIDE) == text.count(SHOW) == 1
    assert ("eval_loss" in text) is not fails


def test_a_resumed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    trainer_of(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    trainer = trainer_of(tmp_path)
    terminal = Terminal(monkeypatch, "stdout", "stderr")
    begun = []
    bar = next(
        callback for callback in trainer.callback_handler.callbacks if isinstance(callback, ProgressBarCallback)
    )
    begin = bar.on_train_begin
    monkeypatch.setattr(
        bar, "on_train_begin", lambda *a, **k: (begin(*a, **k), begun.append(bar._progress.tasks[0].completed))[0]
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    text = terminal.text()
    assert begun == [2] and "4/4" in text and "0/4" not in text


@pytest.mark.parametrize("callback", [ProgressBarCallback, LogLinesCallback])
def test_other_processes_are_silent(callback, monkeypatch):
    callback, control = callback(), TrainerControl()
    state = TrainerState(max_steps=4, is_world_process_zero=False, is_local_process_zero=True)
    terminal = Terminal(monkeypatch, "stdout", "stderr")
    callback.on_train_begin(None, state, control)
    callback.on_prediction_step(None, state, control, eval_dataloader=[1])
    callback.on_evaluate(None, state, control)
    callback.on_step_end(None, state, control)
    callback.on_log(None, state, control, logs={"loss": 0.5})
    callback.on_train_end(None, state, control)
    assert terminal.text() == ""


@pytest.mark.parametrize("disable_tqdm,theirs", [(True, PrinterCallback), (False, ProgressCallback)])
def test_they_are_removed_as_those_of_transformers(tmp_path, capfd, disable_tqdm, theirs):
    trainer = trainer_of(tmp_path, disable_tqdm=disable_tqdm)
    callbacks = trainer.callback_handler.callbacks
    assert not any(type(callback) in (PrinterCallback, ProgressCallback) for callback in callbacks)
    trainer.remove_callback(theirs)
    capfd.readouterr()
    trainer.train()
    assert capfd.readouterr().out == ""
