# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Training never dies of the Hub: what goes wrong, and what becomes of it. The table of docs/hub.md."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.fixtures.trainers import assert_equal_weights, lora_of
from tests.hub.conftest import TOKEN
from tests.hub.test_push import CURVE, LORA, MODEL, REPO, STATES, make
from trl_focus.hub import patience
from trl_focus.hub.upload import HubUploads, run_files


CREATE, LFS, COMMIT, LIST = ("POST", "/repos/create"), ("PUT", "/lfs/"), ("POST", "/commit/"), ("GET", "/revision/")

# Faults that pass: after them, everything is on the Hub
PASSING = {
    "500 at the repository's creation": (CREATE, {"status": 500}),
    "502 at an upload": (LFS, {"status": 502}),
    "503 at a commit": (COMMIT, {"status": 503}),
    "silence at the repository's creation": (CREATE, {"hang": 30}),
    "silence at an upload": (LFS, {"hang": 30}),
    "silence at a commit": (COMMIT, {"hang": 30}),
    "cut in an upload": (LFS, {"cut": True}),
    "cut in a commit": (COMMIT, {"cut": True}),
    "cut in what the Hub lists": (("GET", "/api/models/"), {"cut": True}),
    "the answer to a commit is lost": (COMMIT, {"lost": True}),
    "401 at a commit": (COMMIT, {"status": 401}),
    "403 at a commit": (COMMIT, {"status": 403}),
    "404 at a commit": (COMMIT, {"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}),
    "409 at a commit": (COMMIT, {"status": 409}),
    "412 at a commit": (COMMIT, {"status": 412}),
    "429 at an upload": (LFS, {"status": 429, "headers": {"Retry-After": "1"}}),
    "429 at a commit": (COMMIT, {"status": 429, "headers": {"Retry-After": "1"}}),
}
# Those that last: nothing arrives, and the command of the message uploads it once they are over
LASTING = {name: fault for name, fault in PASSING.items() if name != "the answer to a commit is lost"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    trainer = make(tmp_path_factory.mktemp("undisturbed"), push_to_hub=False)
    trainer.train()
    return lora_of(trainer)


def run(folder, **kwargs):
    trainer = make(folder, hub_strategy="checkpoint", hub_always_push=True, **kwargs)
    trainer.train()
    trainer.push_to_hub()
    return trainer


def whole(hub, folder, there=True):
    """Asserts that the run is whole on this disk, and on the Hub, or that there is no file of it."""
    checkpoint = folder / "checkpoint-2"
    assert MODEL <= {path.name for path in folder.iterdir()}
    assert MODEL | STATES == {path.name for path in checkpoint.iterdir()} - {CURVE}
    repo = hub.repos.get(("models", REPO))
    if not there:
        assert repo is None or repo.files() == {}
        return
    local = {name: folder / name for name in MODEL | {CURVE}}
    local |= {f"last-checkpoint/{path.name}": path for path in checkpoint.iterdir()}
    assert repo.files() == {name: path.read_bytes() for name, path in local.items()}


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes(hub, tmp_path, undisturbed, caplog, name):
    (method, path), fault = PASSING[name]
    struck = hub.fail(method, path, **fault)
    trainer = run(tmp_path)
    assert struck.happened == 1
    assert_equal_weights(lora_of(trainer), undisturbed)
    whole(hub, tmp_path)
    assert "Not everything reached" not in caplog.text


@pytest.mark.parametrize("name", LASTING)
def test_a_fault_that_lasts(hub, tmp_path, undisturbed, caplog, monkeypatch, name):
    monkeypatch.setattr(patience, "SILENCE", 0.1)  # waited for in each attempt
    (method, path), fault = LASTING[name]
    hub.fail(method, path, times=-1, **fault)
    trainer = run(tmp_path)
    assert_equal_weights(lora_of(trainer), undisturbed)
    whole(hub, tmp_path, there=False)
    assert "Training goes on" in caplog.text
    assert caplog.text.count("Not everything reached") == 1
    commands = commands_of(caplog.text)
    assert [command[:2] for command in commands] == [["hf", "upload"]] * 2
    assert [command[3] for command in commands] == [str(tmp_path), str(tmp_path / "checkpoint-2")]


def commands_of(text):
    return [shlex.split(line) for line in re.findall(r"^    (hf upload .*)$", text, flags=re.MULTILINE)]


def test_the_message_finishes_the_upload(hub, tmp_path, caplog):
    """The commands, as they stand, by the real command line."""
    fault = hub.fail(*COMMIT, times=-1, status=500)
    run(tmp_path)
    fault.times = fault.happened
    environment = {**os.environ, **hub.environment(tmp_path.parent / "home", TOKEN)}
    for command in commands_of(caplog.text):
        subprocess.run([Path(sys.executable).with_name("hf"), *command[1:]], env=environment, check=True)
    whole(hub, tmp_path)


def test_a_push_that_failed_is_made_up_for_by_the_next(hub, tmp_path, caplog):
    fault = hub.fail(*COMMIT, times=1, status=401)
    trainer = run(tmp_path, max_steps=2)
    assert fault.happened == 1 and trainer._uploads.missing == {}
    whole(hub, tmp_path)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"hub_token": "hf_Wrong"}, "401"),
        ({"hub_token": "hf_Wrong\n"}, "<token>"),
        ({"hub_model_id": "bob/lora"}, "403"),
        ({"hub_model_id": "alice/a/b"}, "alice/a/b"),
    ],
)
def test_what_is_wrong_from_the_start_is_said_at_the_start(hub, tmp_path, caplog, settings, said):
    trainer = make(tmp_path, **settings)
    start = caplog.text
    assert "can't be created now" in start and said in start and "hf_Wrong" not in start
    trainer.train()
    trainer.push_to_hub()
    whole(hub, tmp_path, there=False)
    assert caplog.text.count("Not everything reached") == 1 and "hf auth login" in caplog.text
    assert "hf_Wrong" not in caplog.text


@pytest.mark.parametrize("how", ["offline by choice", "nobody listens"])
def test_without_network(hub, tmp_path, caplog, monkeypatch, how):
    if how == "offline by choice":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        hub.server.shutdown()
        hub.server.server_close()
    run(tmp_path)
    whole(hub, tmp_path, there=False)
    assert caplog.text.count("Not everything reached") == 1 and len(commands_of(caplog.text)) == 2


def test_a_hub_that_comes_back_gets_everything(hub, tmp_path, caplog):
    """The repository can't be made at the start, and is made by a later push."""
    hub.fail(*CREATE, times=2, status=503)
    run(tmp_path)
    whole(hub, tmp_path)
    assert LORA in hub.model(REPO).files() and "can't be created now" in caplog.text


def test_a_full_disk_stops_the_push_and_not_the_training(hub, tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trl_focus.hub.upload._stage", full)
    trainer = run(tmp_path)
    assert trainer.state.global_step == 2 and "No space left" in caplog.text
    assert caplog.text.count("Not everything reached") == 1


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, tmp_path):
    (tmp_path / "README.md").write_text("x")
    uploads = HubUploads(tmp_path, REPO)
    fault = hub.fail(*COMMIT, lost=True)
    commit = uploads.push(run_files(tmp_path), "push", {".": tmp_path}).result()
    history = hub.model(REPO).history()
    assert (
        fault.happened == 1
        and [c.title for c in history] == ["push", "initial commit"]
        and commit.oid == history[0].sha
    )
