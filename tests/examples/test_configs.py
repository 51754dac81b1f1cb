# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The examples' files are taken by the scripts that they name, and the scripts train from one."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES
from trl_focus.scripts import diffusion_dpo, focus_dpo


CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("*.yaml"))


def parse(script, *args):
    return script.make_parser().parse_args_and_config([str(arg) for arg in args])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_script_that_it_names_takes_it(config, tmp_path):
    text = config.read_text()
    name, path = re.search(r"accelerate launch -m trl_focus\.scripts\.(\w+) --config (\S+)", text).groups()
    assert Path(path).name == config.name and "Not run on the real weights" in text
    script = import_module(f"trl_focus.scripts.{name}")
    # the CPU of a test has no bf16 to check for, and `resolution` shows that the command line wins
    arguments = ["--use_cpu", "--output_dir", tmp_path, "--resolution", 256]
    script_args, training_args, model_args = parse(script, "--config", config, *arguments)
    given = yaml.safe_load(text)
    assert model_args.model_name_or_path == given["model_name_or_path"]
    assert script_args.dataset_name == given["dataset_name"] and model_args.lora_r == given["lora_r"]
    assert training_args.bf16 and training_args.resolution == 256 != given["resolution"]
    assert training_args.learning_rate == 1e-5 and training_args.max_steps == given["max_steps"]
    assert training_args.reference_positions == given.get("reference_positions")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_its_memory_is_the_sum_of_its_terms(config):
    lines = re.findall(r"^# +(\d+\.\d)  (.*)$", config.read_text(), flags=re.MULTILINE)
    *terms, total = [float(number) for number, _ in lines]
    assert len(terms) >= 5 and sum(terms) == pytest.approx(total, abs=0.05)
    for number, (_, term) in zip(terms, lines, strict=False):
        if factors := re.search(r"([\d.]+) (B|M)\b.* x (\d+) bytes", term):
            amount, unit, size = factors.groups()
            assert float(amount) * {"B": 1, "M": 1e-3}[unit] * int(size) == pytest.approx(number, abs=0.06), term
        if factors := re.search(r"2 images x (\d+) tokens x (\d+) x (\d+) bytes", term):
            tokens, width, size = map(int, factors.groups())
            blocks = int(re.search(r"(\d+) blocks", term).group(1)) if "blocks" in term else 1
            assert blocks * 2 * tokens * width * size / 1e9 == pytest.approx(number, abs=0.06), term


def test_misspelt_fields_are_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("model_name_or_path: a\ndataset_name: b\noutput_dir: c\nresolutoin: 512\n")
    with pytest.raises(ValueError, match="resolutoin"):
        parse(focus_dpo, "--config", tmp_path / "config.yaml")


@pytest.mark.parametrize("script,family", [(focus_dpo, "flux_uno"), (diffusion_dpo, "sd15")])
def test_a_file_trains(script, family, tmp_path):
    (tmp_path / "pairs").mkdir()
    pairs = make_pairs(4, n_references=2 if family == "flux_uno" else 0)
    for split in ("train", "test"):
        pairs.to_parquet(tmp_path / "pairs" / f"{split}.parquet")
    PIPELINES[family]().save_pretrained(tmp_path / "base")
    config = {
        "model_name_or_path": str(tmp_path / "base"),
        "dataset_name": str(tmp_path / "pairs"),
        "output_dir": str(tmp_path / "out"),
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_modules": ["to_q", "to_k"],
        "resolution": 64,
        "encode_prompt_kwargs": {"max_sequence_length": 64} if family == "flux_uno" else None,
        "reference_positions": "diagonal" if family == "flux_uno" else None,
        "per_device_train_batch_size": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "max_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    trainer = script.main(*parse(script, "--config", file))
    assert trainer.state.global_step == 2
    assert any("eval_loss" in logs for logs in trainer.state.log_history)
    fresh = PIPELINES[family]()
    fresh.load_lora_weights(tmp_path / "out")
    (adapter,) = fresh.get_active_adapters()
    denoiser = getattr(fresh, trainer.family.denoiser_name)
    config = denoiser.peft_config[adapter]
    assert (config.r, config.lora_alpha, {*config.target_modules}) == (4, 8, {"to_q", "to_k"})


def test_the_revision_reaches_the_hub(monkeypatch):
    seen = {}

    class Trainer:
        def __init__(self, model, args, **kwargs):
            seen.update(args.model_init_kwargs)
            raise InterruptedError

    monkeypatch.setattr("trl_focus.scripts.training.load_preferences", lambda *args: None)
    monkeypatch.setattr(focus_dpo, "TRAINER", Trainer)
    with pytest.raises(InterruptedError):
        focus_dpo.main(
            *parse(focus_dpo, "--model_name_or_path", "a", "--dataset_name", "b", "--model_revision", "fp16")
        )
    assert seen == {"revision": "fp16"}
