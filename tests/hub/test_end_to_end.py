# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""From the Hub and back, each step in a process of its own that knows no more than ids."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load

from tests.hub.conftest import TOKEN, USERS
from tests.hub.loopback import LoopbackHub


ROOT = Path(__file__).parents[2]
BASE, PAIRS, LORA = "alice/tiny-klein", "alice/pairs", "alice/tiny-klein-focus"
LATER = ("checkpoint-3", "checkpoint-4")
SETTINGS = {
    "model_name_or_path": BASE,
    "dataset_name": PAIRS,
    "push_to_hub": True,
    "hub_model_id": LORA,
    "hub_strategy": "all_checkpoints",
    "hub_private_repo": True,
    "hub_always_push": True,
    "save_strategy": "steps",
    "save_steps": 1,
    "resolution": 64,
    "encode_prompt_kwargs": {"max_sequence_length": 64, "text_encoder_out_layers": [1, 2, 3]},
    "per_device_train_batch_size": 2,
    "max_steps": 4,
    "learning_rate": 0.01,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
}

PUSH = f"""
from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES
from trl_focus import push_preference_dataset
push_preference_dataset(make_pairs(8, n_references=2), {PAIRS!r}, private=True)
PIPELINES["flux2_klein"]().push_to_hub({BASE!r}, private=True)
"""

SAMPLE = f"""
import sys, torch
from diffusers import DiffusionPipeline
from peft import set_peft_model_state_dict
from tests.fixtures.pipelines import PROMPT_KWARGS

def sample(pipe):
    kwargs = dict(num_inference_steps=2, height=64, width=64, output_type="pt", **PROMPT_KWARGS["flux2_klein"])
    return pipe(prompt="a cat", generator=torch.Generator().manual_seed(0), **kwargs).images

def base():
    pipe = DiffusionPipeline.from_pretrained({BASE!r})
    pipe.set_progress_bar_config(disable=True)
    return pipe

with torch.no_grad():
    by_id = base()
    by_id.load_lora_weights({LORA!r})
    trained = base()  # the trained model, as PEFT has it
    from peft import PeftModel
    trained.transformer = PeftModel.from_pretrained(trained.transformer, sys.argv[1])
    torch.save([sample(base()), sample(by_id), sample(trained)], sys.argv[2])
"""


@pytest.fixture
def hub():
    with LoopbackHub(USERS) as hub:
        yield hub


def test_from_the_hub_and_back(hub, tmp_path):
    said = []

    def run(*command, home):
        environment = {**os.environ, **hub.environment(tmp_path / home, TOKEN), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *map(str, command)], env=environment, cwd=tmp_path, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        said.append(done.stdout + done.stderr)
        return said[-1]

    def train(name, **settings):
        config = tmp_path / f"{name}.yaml"
        config.write_text(yaml.safe_dump({**SETTINGS, "output_dir": str(tmp_path / name), **settings}))
        return run("-m", "trl_focus", "train", "focus", "--config", config, home="train")

    run("-c", PUSH, home="push")
    assert {("models", BASE), ("datasets", PAIRS)} == set(hub.repos)

    assert "these pairs can be trained on" in run("-m", "trl_focus", "validate", PAIRS, home="validate")

    train("straight")
    repo = hub.model(LORA)
    # the save of the last step has all that the end has, and no commit is made of nothing
    assert repo.private and repo.history()[0].title in ("Training in progress, step 4", "End of training")
    straight = repo.files()
    assert f"base_model: {BASE}" in straight["README.md"].decode() and PAIRS in straight["README.md"].decode()
    assert PAIRS in straight["checkpoint-2/README.md"].decode()
    assert "checkpoint-2/optimizer.pt" in straight and not [path for path in straight if path.endswith(".bin")]

    run("-c", SAMPLE, tmp_path / "straight", tmp_path / "samples.pt", home="sample")
    plain, by_id, trained = torch.load(tmp_path / "samples.pt")
    assert torch.equal(by_id, trained) and not torch.equal(by_id, plain)

    # As if it had been stopped after the push of step 2, on a machine that is gone
    left = {path: file for path, file in repo.find("main").files.items() if path.split("/")[0] not in LATER}
    repo.commit("main", "back to step 2", left)
    train("resumed", resume_from_checkpoint="last-checkpoint")
    resumed = repo.files()
    assert not (tmp_path / "resumed" / "checkpoint-2").exists() and (tmp_path / "resumed" / "checkpoint-3").is_dir()
    name = "pytorch_lora_weights.safetensors"
    for key, value in load(straight[name]).items():
        assert torch.equal(value, load(resumed[name])[key]), key

    assert not [text for text in said if TOKEN in text]
    everything = {
        (r.id, sha, path): data for r in hub.repos.values() for sha in r.commits for path, data in r.files(sha).items()
    }
    everything |= {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not [name for name, data in everything.items() if TOKEN.encode() in data]
