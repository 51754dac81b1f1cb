# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What of a run arrives on the Hub, by the strategy that it is pushed with."""

import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import TrainerCallback

from tests.fixtures.pipelines import PIPELINES, PROMPT_KWARGS
from tests.fixtures.trainers import make_focus_trainer
from tests.hub.conftest import TOKEN
from trl_focus import LogFocusMapsCallback
from trl_focus.hub.upload import EXCLUDED, HubUploads, run_files, upload_command


REPO = "alice/lora"
LORA = "pytorch_lora_weights.safetensors"
MODEL = {
    LORA,
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "card.json",
    "diffusion_dpo_state.json",
}
CURVE = "training_curve.png"  # where there is more than one point to draw
STATES = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


def make(folder, **kwargs):
    settings = {"push_to_hub": True, "hub_model_id": REPO, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    return make_focus_trainer(folder, **{**settings, **kwargs})


def tree(repo, sha):
    """Files of a commit by their folder; the curve is left out."""
    folders = {}
    for path in repo.files(sha):
        folder, _, name = path.rpartition("/")
        if name == CURVE:
            continue
        folders.setdefault(folder, set()).add(name)
    return folders


def commits(hub):
    """Messages and trees of what was pushed, the first first."""
    repo = hub.model(REPO)
    return [(commit.title, tree(repo, commit.sha)) for commit in reversed(repo.history()[:-1])]


class WaitForPush(TrainerCallback):
    """Lets no save find an upload still running."""

    def on_step_begin(self, args, state, control, **kwargs):
        if self.trainer._uploads:
            self.trainer._uploads.wait()


def trained(folder, **kwargs):
    waiting = WaitForPush()
    trainer = make(folder, callbacks=[waiting], **kwargs)
    waiting.trainer = trainer
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "strategy, checkpoints",
    [
        ("every_save", [set(), set()]),
        ("checkpoint", [{"last-checkpoint"}, {"last-checkpoint"}]),
        ("all_checkpoints", [{"checkpoint-1"}, {"checkpoint-1", "checkpoint-2"}]),
        ("end", None),
    ],
)
def test_what_arrives(hub, tmp_path, strategy, checkpoints):
    trainer = trained(tmp_path, hub_strategy=strategy)
    during = commits(hub)
    if checkpoints is None:
        assert during == []
    else:
        assert [title for title, _ in during] == ["Training in progress, step 1", "Training in progress, step 2"]
        for (_, folders), names in zip(during, checkpoints, strict=True):
            assert folders == {"": MODEL, **dict.fromkeys(names, MODEL | STATES)}
    trainer.push_to_hub(dataset_name="alice/pairs")
    title, folders = commits(hub)[-1]
    assert title == "End of training"
    assert folders == {"": MODEL, **dict.fromkeys((checkpoints or [set()])[-1], MODEL | STATES)}
    files = hub.model(REPO).files()
    assert all(files[name] == (tmp_path / name).read_bytes() for name in MODEL)
    assert "alice/pairs" in str(ModelCard(files["README.md"].decode()).data.datasets)
    assert not list(tmp_path.glob("_*"))


@torch.no_grad()
def sample(pipeline):
    generator = torch.Generator().manual_seed(0)
    kwargs = {"num_inference_steps": 2, "height": 64, "width": 64, "guidance_scale": 1.0, "output_type": "pt"}
    return pipeline(prompt="a cat", generator=generator, **kwargs, **PROMPT_KWARGS["flux2_klein"]).images


def test_the_lora_loads_by_its_id_at_every_push(hub, tmp_path):
    trainer = trained(tmp_path, hub_strategy="every_save", hub_private_repo=True)
    with trainer.sampling():
        expected = sample(trainer.pipeline)
    assert hub.model(REPO).private
    pipeline = PIPELINES["flux2_klein"]()
    plain = sample(pipeline)
    pipeline.load_lora_weights(REPO, weight_name=LORA)
    assert torch.equal(sample(pipeline), expected) and not torch.equal(plain, expected)


def test_pictures_and_curves_are_pushed_and_the_rest_of_the_folder_is_not(hub, tmp_path):
    (tmp_path / "_notes.txt").write_text("mine")
    (tmp_path / "training_args.bin").write_bytes(b"of an older release")
    (tmp_path / "focus_maps" / ".git").mkdir(parents=True)
    for name in (".env", ".git/config", "_notes.txt"):
        (tmp_path / "focus_maps" / name).write_text("mine")
    trainer = make(
        tmp_path, callbacks=[LogFocusMapsCallback(1)], report_to="tensorboard", save_strategy="no", max_steps=1
    )
    trainer.train()
    trainer.push_to_hub()
    paths = set(hub.model(REPO).files()) - MODEL
    assert "focus_maps/step-000000.png" in paths and any("tfevents" in path for path in paths)
    assert {path.split("/")[0] for path in paths} == {"focus_maps", "runs"}
    assert not [part for path in paths for part in path.split("/") if part[0] in "._"]


def test_a_branch_is_made_and_no_owner_need_be_named(hub, tmp_path):
    trainer = make(tmp_path, hub_model_id="lora", hub_revision="draft", max_steps=1)
    assert trainer.hub_model_id == REPO
    trainer.train()
    repo = hub.model(REPO)
    assert set(repo.files("draft")) - {CURVE} == MODEL and repo.files("main") == {}
    trainer.push_to_hub(revision="main")
    assert set(repo.files("main")) - {CURVE} == MODEL


def test_push_without_push_to_hub(hub, tmp_path):
    trainer = make(tmp_path, push_to_hub=False, save_strategy="no", max_steps=1)
    trainer.train()
    assert not hub.requests
    commit = trainer.push_to_hub(commit_message="by hand", private=True, blocking=False).result()
    assert commit.oid == hub.model(REPO).history()[0].sha and hub.model(REPO).history()[0].title == "by hand"
    assert hub.model(REPO).private


def test_a_repository_that_is_made_late_is_private_too(hub, tmp_path):
    hub.fail("POST", "/repos/create", times=1, status=403)
    trainer = make(tmp_path, save_strategy="no", max_steps=1)
    assert not trainer._uploads.created
    trainer.push_to_hub(private=True)
    assert hub.model(REPO).private


def test_the_token_is_nowhere(hub, tmp_path, capfd, monkeypatch):
    secrets = ["hf_ByHubToken", "hf_ByModelInitKwargs"]
    hub.users[secrets[0]] = "alice"
    monkeypatch.delenv("HF_TOKEN")
    trainer = trained(
        tmp_path,
        hub_token=secrets[0],
        model_init_kwargs={"token": secrets[1]},
        hub_strategy="checkpoint",
        report_to="tensorboard",
        log_level="debug",
    )
    trainer.push_to_hub()
    print(trainer.args, repr(trainer.args))
    said = "".join(capfd.readouterr())
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    pushed = {
        (sha, path): data for sha in hub.model(REPO).commits for path, data in hub.model(REPO).files(sha).items()
    }
    assert any("last-checkpoint" in path for _, path in pushed) and any("tfevents" in path for _, path in pushed)
    for secret in secrets:
        assert secret not in said
        assert not [name for name, data in {**written, **pushed}.items() if secret.encode() in data]


@pytest.fixture
def uploads(hub, tmp_path):
    (tmp_path / "README.md").write_text("0")
    uploads = HubUploads(tmp_path, REPO)
    assert uploads.try_create_repo()
    return uploads


def push(uploads, text, checkpoint=None):
    """Pushes a README of this text, and a checkpoint, if one is named, of a file with it."""
    folder = uploads.folder
    (folder / "README.md").write_text(text)
    files, sources = {"README.md": folder / "README.md"}, {".": folder}
    if checkpoint:
        (folder / text).mkdir()
        (folder / text / f"{text}.pt").write_text(text)
        files[f"{checkpoint}/{text}.pt"] = folder / text / f"{text}.pt"
        sources[checkpoint] = folder / text
    return uploads.push(files, f"push {text}", sources)


def held(hub, monkeypatch, uploads):
    """The uploader, whose commits wait for the event that is returned."""
    gate, commit = threading.Event(), uploads._commit
    monkeypatch.setattr(uploads, "_commit", lambda *args: gate.wait(30) and commit(*args))
    return gate


@pytest.mark.parametrize(
    "names, expected",
    [
        (["last-checkpoint"] * 4, {"last-checkpoint/3.pt"}),
        ([f"checkpoint-{i}" for i in range(4)], {f"checkpoint-{i}/{i}.pt" for i in range(4)}),
    ],
)
def test_pushes_do_not_pile_up(hub, monkeypatch, uploads, names, expected):
    """Three that come while one runs are one more commit, of what is newest, and of every checkpoint that has its own name."""
    gate = held(hub, monkeypatch, uploads)
    first = push(uploads, "0", names[0])
    while uploads._waiting is not None:  # the thread has not begun
        time.sleep(0.01)
    futures = [push(uploads, str(i), names[i]) for i in range(1, 4)]
    gate.set()
    uploads.wait()
    repo = hub.model(REPO)
    assert [commit.title for commit in repo.history()[:-1]] == ["push 3", "push 0"]
    assert futures[0] is futures[2] is not first and futures[0].result().oid == repo.history()[0].sha
    assert set(repo.files()) == expected | {"README.md"} and repo.files()["README.md"] == b"3"
    assert not (uploads.folder / "_push").exists()


def test_files_are_pushed_as_they_were(hub, monkeypatch, uploads):
    """Training writes on, and makes room for new checkpoints, while an upload runs."""
    gate = held(hub, monkeypatch, uploads)
    pushed = push(uploads, "0", "checkpoint-1")
    (uploads.folder / "README.md").write_text("later")
    (uploads.folder / "0" / "0.pt").unlink()
    gate.set()
    assert pushed.result()
    assert hub.model(REPO).files() == {"README.md": b"0", "checkpoint-1/0.pt": b"0"}


def test_folders_that_vanish_meanwhile_are_left_out(tmp_path, monkeypatch):
    for path in ("_push/1/pytorch_lora_weights.safetensors", "samples/step-1.png", "README.md"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    scandir = os.scandir

    def vanishing(folder):
        if os.fspath(folder) != os.fspath(tmp_path):
            raise FileNotFoundError(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert run_files(tmp_path) == {"README.md": tmp_path / "README.md"}


@pytest.mark.parametrize("always", [False, True])
def test_hub_always_push(hub, tmp_path, always):
    """A save that finds an upload running is not pushed, unless all are asked for."""
    trainer = make(tmp_path, hub_always_push=always, max_steps=3, hub_strategy="all_checkpoints")
    gate, commit = threading.Event(), trainer._uploads._commit
    trainer._uploads._commit = lambda *args: gate.wait(60) and commit(*args)

    class Open(TrainerCallback):
        def on_train_end(self, *args, **kwargs):
            gate.set()

    trainer.add_callback(Open())
    trainer.train()
    names = {path.split("/")[0] for path in hub.model(REPO).files() if "/" in path}
    assert names == ({"checkpoint-1", "checkpoint-2", "checkpoint-3"} if always else {"checkpoint-1"})


def test_the_command_of_the_report_uploads_the_run(hub, tmp_path):
    folder = tmp_path / "it's a run"
    trainer = make(folder, save_steps=1, max_steps=1, hub_strategy="end")
    trainer.train()
    trainer.save_model(_internal_call=True)
    (folder / "training_args.bin").write_bytes(b"of an older release")
    command = shlex.split(upload_command(REPO, folder, ".", EXCLUDED, revision="draft"))
    environment = {**os.environ, **hub.environment(tmp_path / "home", TOKEN)}
    hf = Path(sys.executable).with_name("hf")
    subprocess.run([hf, *command[1:]], env=environment, check=True, cwd=tmp_path)
    assert command[0] == "hf" and set(hub.model(REPO).files("draft")) - {CURVE} == MODEL
