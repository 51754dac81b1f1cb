# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Resuming from a run's own repository, and what is not read on the way: pickles that run code."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.fixtures.pipelines import PIPELINES
from tests.fixtures.trainers import assert_equal_weights, lora_of, make_args, make_focus_trainer
from tests.hub.test_push import REPO, make
from tests.trainer.test_resume import StopAt
from trl_focus import FocusDPOConfig
from trl_focus.hub.checkpoint import download_checkpoint
from trl_focus.trainer.pipeline import load_pipeline, load_reference


SETTINGS = {"max_steps": 4, "hub_strategy": "checkpoint", "hub_private_repo": True, "hub_always_push": True}


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    trainer = make(tmp_path_factory.mktemp("straight"), **SETTINGS, push_to_hub=False)
    trainer.train()
    return trainer


@pytest.fixture
def pushed(hub, tmp_path):
    """A run that was interrupted after two of four steps; nothing of it is left here."""
    make(tmp_path / "first", callbacks=[StopAt(2)], **SETTINGS).train()
    shutil.rmtree(tmp_path / "first")


def test_resume_is_bitwise(hub, pushed, straight, tmp_path):
    second = make(tmp_path / "second", **SETTINGS)
    second.train(resume_from_checkpoint="last-checkpoint")
    assert losses(second) == losses(straight)
    assert_equal_weights(lora_of(second), lora_of(straight))
    state = json.loads(hub.model(REPO).files()["last-checkpoint/trainer_state.json"])
    assert state["global_step"] == 4


def test_the_highest_of_all_checkpoints(hub, straight, tmp_path):
    settings = {**SETTINGS, "hub_strategy": "all_checkpoints", "hub_revision": "draft"}
    make(tmp_path / "first", callbacks=[StopAt(2)], **settings).train()
    hub.model(REPO).branches["main"] = hub.model(REPO).branches["draft"]
    checkpoint = download_checkpoint("lora", revision="draft")  # of whoever is logged in
    assert checkpoint.name == "checkpoint-2"
    second = make(tmp_path / "second", **settings)
    second.train(resume_from_checkpoint="last-checkpoint")
    assert losses(second) == losses(straight)


@pytest.mark.parametrize(
    "fault",
    [{"cut": True, "times": 2}, {"status": 500}, {"status": 429, "headers": {"Retry-After": "1"}}, {"hang": 30}],
    ids=["cut", "500", "429", "silence"],
)
def test_a_fault_that_passes(hub, pushed, tmp_path, monkeypatch, fault):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    struck = hub.fail("GET", "/resolve/.*optimizer", **fault)
    checkpoint = download_checkpoint(REPO)
    files = {
        path.removeprefix("last-checkpoint/"): data
        for path, data in hub.model(REPO).files().items()
        if path.startswith("last-checkpoint/")
    }
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == files
    assert struck.happened == struck.times


@pytest.mark.parametrize("path", ["/resolve/.*rng_state", "/api/models/"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_fault_that_lasts_is_said_and_nothing_half_is_resumed(hub, pushed, tmp_path, path, cached):
    if cached:  # a part of it is in the cache already
        fault = hub.fail(
            "GET", "/resolve/.*rng_state", times=-1, status=404, headers={"X-Error-Code": "EntryNotFound"}
        )
        with pytest.raises(ConnectionError):
            download_checkpoint(REPO)
        fault.times = fault.happened
    hub.fail("GET|HEAD", path, times=-1, cut=True)
    trainer = make(tmp_path / "second", **SETTINGS, push_to_hub=False)
    with pytest.raises(ConnectionError, match=f"can't be fetched from {REPO}"):
        trainer.train(resume_from_checkpoint="last-checkpoint")
    assert trainer.state.global_step == 0


def test_no_checkpoint_no_repository_no_right(hub, pushed, tmp_path, monkeypatch):
    make(tmp_path / "other", hub_model_id="alice/other", max_steps=1).push_to_hub()
    with pytest.raises(ValueError, match="alice/other has no checkpoint.*hub_strategy"):
        download_checkpoint("alice/other")
    trainer = make_focus_trainer(tmp_path)
    with pytest.raises(ValueError, match="set `hub_model_id`"):
        trainer.train(resume_from_checkpoint="last-checkpoint")
    monkeypatch.setenv("HF_TOKEN", "hf_BobMayWriteElsewhere")
    with pytest.raises(ConnectionError, match="hf auth whoami"):
        download_checkpoint(REPO)


def test_deepspeed_is_given_none(hub, tmp_path):
    trainer = make(tmp_path, max_steps=1)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match="DeepSpeed reads its checkpoints by pickle"):
        trainer.train(resume_from_checkpoint="last-checkpoint")


class Bomb:
    """Leaves a mark where it is unpickled without care."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("raw", [False, True], ids=["torch.save", "pickle"])
@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "training_args.bin",
        "adapter_model.bin",
        "pytorch_model.bin",
    ],
)
def test_no_pickle_of_a_checkpoint_runs_code(hub, pushed, tmp_path, name, raw):
    mark = tmp_path / "mark"
    repo = hub.model(REPO)
    bomb = tmp_path / name
    with open(bomb, "wb") as file:
        (pickle.dump if raw else torch.save)(Bomb(mark), file)
    files = dict(repo.find("main").files)
    files[f"last-checkpoint/{name}"] = type(files["last-checkpoint/optimizer.pt"])(bomb.read_bytes(), lfs=True)
    repo.commit("main", "bomb", files)
    trainer = make(tmp_path / "second", **SETTINGS, push_to_hub=False)
    if name == "training_args.bin":  # not read at all
        trainer.train(resume_from_checkpoint="last-checkpoint")
        assert trainer.state.global_step == 4
    else:
        expected = ValueError if name.endswith(".bin") else pickle.UnpicklingError
        with pytest.raises(expected, match="could run code" if expected is ValueError else "Weights only load failed"):
            trainer.train(resume_from_checkpoint="last-checkpoint")
    assert not mark.exists()
    pickle.loads(bomb.read_bytes()) if raw else torch.load(bomb, weights_only=False)
    assert mark.exists()  # it was live


@pytest.mark.parametrize("name", ["flux2_klein", "flux3"])
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_base_in_pickles_is_refused(tmp_path, name, part):
    base = tmp_path / "base"
    PIPELINES[name]().save_pretrained(str(base))
    for file in (base / part).glob("*.safetensors"):
        pickled = "pytorch_model.bin" if file.name == "model.safetensors" else f"{file.stem}.bin"
        torch.save(load_file(file), file.with_name(pickled))
        file.unlink()
    args = make_args(FocusDPOConfig, tmp_path, name)
    with pytest.raises(ValueError, match="weights that are not safetensors.*pickle"):
        load_pipeline(str(base), args)
    with pytest.raises(ValueError, match="`use_safetensors=False`"):
        load_pipeline(
            str(base), make_args(FocusDPOConfig, tmp_path, name, model_init_kwargs={"use_safetensors": False})
        )
    if part == "transformer" and name == "flux2_klein":
        PIPELINES[name]().save_pretrained(str(tmp_path / "whole"))
        with pytest.raises(OSError, match="safetensors"):
            load_reference(str(base), load_pipeline(str(tmp_path / "whole"), args), args)
