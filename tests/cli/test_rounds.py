# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""`trl-focus rounds`: what it starts, and one whole run with tiny models."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import yaml

from tests.fixtures.embedders import save_dinov2
from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES, PROMPT_KWARGS
from trl_focus.cli import main
from trl_focus.cli.rounds import APART, words_of


CONFIG = {
    "output_dir": "out",
    "rounds": 2,
    "model": "base",
    "pairs": {"mode": "best-worst", "dataset": "data", "n_samples": 2, "call": {"height": 64}, "offload": True},
    "train": {"max_steps": 1, "resolution": 64},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(**changes) -> int:
    Path("rounds.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))
    return main(["rounds", "--config", "rounds.yaml"])


@pytest.fixture
def started(monkeypatch):
    """Command lines that would have been started. Training leaves a LoRA."""
    found = []

    def record(words):
        found.append(words[3:])
        if words[3] == "train":
            settings = yaml.safe_load(Path(words[-1]).read_text())
            found[-1] = [*words[3:5], settings]
            Path(settings["output_dir"]).mkdir(parents=True)
            (Path(settings["output_dir"]) / "pytorch_lora_weights.safetensors").touch()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", record)
    return found


def options(words: list[str]) -> dict[str, str]:
    return {name: words[i + 1] for i, name in enumerate(words[:-1]) if name.startswith("--")}


def test_each_round_draws_with_the_lora_before(folder, started):
    assert start() == 0
    first, train_first, second, train_second = started
    assert first[:3] == ["pairs", "best-worst", "data"] and "--offload" in first and "--lora" not in first
    assert json.loads(options(first)["--call"]) == {"height": 64}
    assert options(first)["--seed"] == "0" and options(second)["--seed"] == str(APART)
    assert options(first)["--output_dir"] == "out/round-1/sampled"
    assert options(second)["--lora"] == "out/round-1/lora" and options(second)["--model"] == "base"
    assert train_first[:2] == ["train", "focus"]
    settings = {"max_steps": 1, "resolution": 64, "model_name_or_path": "base"}
    assert train_first[2] == {**settings, "datasets": ["out/round-1/sampled/pairs"], "output_dir": "out/round-1/lora"}
    both = ["out/round-1/sampled/pairs", "out/round-2/sampled/pairs"]
    assert train_second[2] == {**settings, "datasets": both, "output_dir": "out/round-2/lora"}


def test_goes_on(folder, started):
    assert start(rounds=1, method="dpo") == 0
    assert started[1][1] == "dpo"
    started.clear()
    assert start(method="dpo") == 0
    assert [words[0] for words in started] == ["pairs", "pairs", "train"]  # pairs that are there are not made again


@pytest.mark.parametrize(
    "changes", [{"train": {"max_steps": 2}}, {"pairs": {**CONFIG["pairs"], "n_samples": 3}}, {"method": "dpo"}]
)
def test_other_settings(changes, folder, started, capsys):
    assert start() == 0
    started.clear()
    assert start(**changes) == 2 and not started
    assert f"holds a run of other settings: {next(iter(changes))}" in capsys.readouterr().err


def test_stops_where_a_command_fails(folder, monkeypatch):
    codes = iter([0, 2, 0])
    monkeypatch.setattr(subprocess, "run", lambda words: SimpleNamespace(returncode=next(codes)))
    assert start() == 2 and next(codes) == 0


def test_words():
    given = {"a": 1, "b": None, "c": False, "d": True, "e": ["x", 2], "f": {"g": 0.5}}
    assert words_of(given) == ["--a", "1", "--d", "--e", "x", "2", "--f", '{"g": 0.5}']


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"round": 3}, "has round; it may have output_dir, rounds"),
        ({"rounds": 0}, "`rounds` is 0"),
        ({"rounds": "two"}, "`rounds` is 'two'"),
        ({"method": "sft"}, "`method` is 'sft'; there are focus, dpo"),
        ({"pairs": "data"}, "`pairs` is 'data', no mapping"),
        ({"pairs": {"mode": "best-worst"}}, "`pairs` lacks dataset"),
        ({"pairs": {"mode": "corrupt", "dataset": "data"}}, "which draws nothing with the model"),
        (
            {"train": {"max_stepz": 1}},
            "`train`: the configuration file has the unknown field `max_stepz`: did you mean",
        ),
        ({"train": {"max_steps": "many"}}, "`train`: argument --max_steps"),
        ({"train": {"max_steps": 0.5}}, "`train`: `max_steps` is 0.5 in the configuration file"),
        ({"train": {"crop": "centre"}}, "`train`: `crop` is 'centre'; there are none, center, random"),
        ({"train": {"output_dir": "a"}}, "`train` has output_dir, which each round sets itself"),
    ],
)
def test_what_can_not_be_used(changes, message, folder, started, capsys):
    assert start(**changes) == 2 and not started
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message", [("a: [", "is not YAML"), ("- a", "no mapping"), ("rounds: 1", "lacks output_dir")]
)
def test_file(text, message, folder, capsys):
    Path("rounds.yaml").write_text(text)
    assert main(["rounds", "--config", "rounds.yaml"]) == 2
    assert message in capsys.readouterr().err
    assert main(["rounds", "--config", "none.yaml"]) == 2


def test_a_run(folder, monkeypatch):
    """Two rounds, in this process: to start four would take a minute."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    monkeypatch.setattr(subprocess, "run", lambda words: SimpleNamespace(returncode=main(words[3:])))
    PIPELINES["flux2_klein"]().save_pretrained("base")
    prompt = PROMPT_KWARGS["flux2_klein"]
    columns = ["rejected", "rejected_masks", "chosen", "chosen_masks"]
    make_pairs(2, n_references=1).remove_columns(columns).save_to_disk("data")
    pairs = {
        "mode": "best-worst",
        "dataset": "data",
        "n_samples": 2,
        "margin": 0,
        "call": {"height": 64, "width": 64, "num_inference_steps": 1, **prompt},
        "identity_model": save_dinov2(folder / "dinov2"),
    }
    train = {
        "resolution": 64,
        "max_steps": 1,
        "focus_prior": "similarity",
        "encode_prompt_kwargs": prompt,
        "report_to": "none",
        "use_cpu": True,
        "learning_rate": 0.01,
        "save_strategy": "no",
    }
    assert start(pairs=pairs, train=train, model="base") == 0
    first, second = (
        datasets.load_dataset("parquet", data_files=f"out/round-{number}/sampled/pairs/*.parquet", split="train")
        for number in (1, 2)
    )
    assert len(first) == len(second) == 2
    assert json.loads(second[0]["provenance"])["lora"] == "out/round-1/lora"
    assert Path("out/round-2/lora/pytorch_lora_weights.safetensors").exists()
    datasets.enable_progress_bars()
