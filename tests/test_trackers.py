# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What TensorBoard, wandb and trackio themselves say that they were given."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest
from transformers.integrations import TrackioCallback

from tests.fixtures.pairs import make_pairs
from tests.fixtures.trainers import make_focus_trainer
from trl_focus import LogFocusMapsCallback, LogSamplesCallback


SCALARS = {"train/loss", "train/rewards/accuracies", "train/rewards/margins", "eval/loss", "eval/rewards/accuracies"}


def train(tmp_path, tracker: str):
    """Five steps with maps, samples, which are also drawn at the end of them, and an evaluation."""
    trainer = make_focus_trainer(
        tmp_path,
        max_steps=5,
        report_to=tracker,
        run_name="a-run",
        eval_dataset=make_pairs(2, n_references=2),
        eval_strategy="steps",
        eval_steps=4,
        callbacks=[LogFocusMapsCallback(every_n_steps=2)],
    )
    rows = make_pairs(1, n_references=1)
    trainer.add_callback(LogSamplesCallback(trainer, rows, every_n_steps=2, num_inference_steps=1))
    trainer.train()
    return trainer


def picture(tmp_path, name: str, step: int) -> PIL.Image.Image:
    return PIL.Image.open(tmp_path / name / f"step-{step:06d}.png")


def test_tensorboard(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    train(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    assert SCALARS <= {*events.Tags()["scalars"]}
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    for name, steps in {"focus_maps": [0, 2, 4], "samples": [0, 2, 4, 5]}.items():
        images = events.Images(name)
        assert [event.step for event in images] == steps
        assert (images[-1].width, images[-1].height) == picture(tmp_path, name, steps[-1]).size


def records(log: bytes) -> Iterator[bytes]:
    """Records of a file in LevelDB's log format, behind the seven bytes with which wandb begins it."""
    at, parts = 7, []
    while at + 7 <= len(log):
        if (left := 32768 - at % 32768) < 7:  # the rest of a block that has no room for a header
            at += left
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        if at + 7 + length > len(log):
            return  # not written to its end yet
        parts.append(log[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def whole_run(log: Path, seconds: float = 30) -> list:
    """The records of a run, once the last of them is there: wandb's own process may still write when `finish` returns."""
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = [Record.FromString(data) for data in records(log.read_bytes())]
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{log} did not end within {seconds} seconds.")


def test_wandb(tmp_path, monkeypatch):
    """Offline: nothing is sent, and the run's own file is read."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: `pip install wandb`")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # it reads these once in a process
    train(tmp_path, "wandb")
    wandb.finish()
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    keys, steps = set(), {"focus_maps": [], "samples": []}
    for record in whole_run(log):
        row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        keys |= row.keys()
        for name in steps:
            if any(key.split("/")[0] == name for key in row):
                steps[name].append(int(row["train/global_step"]))
    assert SCALARS <= keys
    assert steps == {"focus_maps": [0, 2, 4], "samples": [0, 2, 4, 5]}
    sizes = {PIL.Image.open(path).size for path in log.parent.glob("files/media/images/samples*.png")}
    assert sizes == {picture(tmp_path, "samples", 5).size}


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trainer = train(tmp_path, "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs(trainer.args.project, "a-run")
    assert SCALARS <= {key for row in logs for key in row}
    for name, steps in {"focus_maps": [0, 2, 4], "samples": [0, 2, 4, 5]}.items():
        pictures = [row for row in logs if name in row]
        assert [row["train/global_step"] for row in pictures] == steps
        assert pictures[-1][name]["_type"] == "trackio.image"
    assert len([*(tmp_path / "trackio" / "media").rglob("*.png")]) == 7


class FakeTrackio:
    """Takes logs while a run is open, as trackio does."""

    def __init__(self):
        self.open, self.logged, self.config = False, [], {}
        self.context_vars = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None))

    def init(self, **kwargs):
        self.open = True

    def finish(self):
        self.open = False

    def log(self, values):
        assert self.open, "Call trackio.init() before trackio.log()."
        self.logged.append(values)

    @staticmethod
    def Image(image):  # noqa: N802
        return image.size


def test_pictures_go_to_an_open_run_alone(tmp_path):
    """trackio's run is closed when training ends, and refuses what comes later."""
    fake = FakeTrackio()
    callback = TrackioCallback.__new__(TrackioCallback)
    callback._trackio, callback._initialized, callback._space_id = fake, False, None
    trainer = make_focus_trainer(tmp_path, max_steps=3, callbacks=[callback])
    samples = LogSamplesCallback(trainer, make_pairs(1, n_references=1), every_n_steps=2, num_inference_steps=1)
    trainer.add_callback(samples)
    trainer.train()
    drawn = [values for values in fake.logged if "samples" in values]
    size = picture(tmp_path, "samples", 3).size
    assert drawn == [{"samples": size, "train/global_step": step} for step in (0, 2, 3)]
    samples._draw(trainer.args, trainer.state)
    assert [values for values in fake.logged if "samples" in values] == drawn
