# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json

import datasets
import pytest

from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES
from tests.fixtures.trainers import make_focus_trainer
from trl_focus.cli import main
from trl_focus.cli.inspect import _matcher, _pictures


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("trl_focus.cli.inspect._wait", lambda: None)
    make_pairs(3, n_references=1).save_to_disk(tmp_path / "pairs")
    yield str(tmp_path / "pairs")
    datasets.enable_progress_bars()


@pytest.fixture
def views(monkeypatch):
    """In place of being served, views are kept."""
    kept = []
    monkeypatch.setattr("trl_focus.inspect.page.launch", lambda view, *args, **kw: (kept.append(view), "http://a/")[1])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    return kept


def test_pairs_are_shown(pairs, views, capsys):
    assert main(["inspect", pairs, "--rows", "2"]) == 0
    assert "2 pairs at http://a/" in capsys.readouterr().out
    assert len(views[0].dataset) == 2 and views[0].matcher is None and views[0].run_pictures == []


def test_without_gradio(pairs, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["inspect", pairs]) == 2
    assert 'the page needs gradio: pip install "trl-focus[inspect]"' in capsys.readouterr().err


def test_refusals(pairs, views, tmp_path, capsys):
    def error_of(*arguments):
        assert main(["inspect", *arguments]) == 2
        return capsys.readouterr().err

    assert "is no folder" in error_of(str(tmp_path / "nowhere"))
    assert "`columns` names 'caption'" in error_of(pairs, "--columns", '{"prompt": "caption"}')
    assert "nowhere" in error_of(pairs, "--model", str(tmp_path / "nowhere"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "card.json").write_text(json.dumps({"dataset": None, "base": {"load": {}}}))
    assert "names no dataset on the Hub" in error_of(str(tmp_path / "run"))
    assert "does not say which model its LoRA is for" in error_of(pairs, "--model", str(tmp_path / "run"))


class TestARun:
    @pytest.fixture
    def run(self, tmp_path, pairs):
        """A run on a pipeline in a folder, trained so far that its LoRA does something."""
        PIPELINES["flux2_klein"]().save_pretrained(tmp_path / "base")
        trainer = make_focus_trainer(tmp_path / "run", pipeline=str(tmp_path / "base"), max_steps=2)
        trainer.train()
        trainer.save_model()
        (tmp_path / "run" / "focus_maps").mkdir()
        for step in (0, 2):
            (tmp_path / "run" / "focus_maps" / f"step-{step:06d}.png").write_bytes(b"")
        return tmp_path / "run"

    def test_its_lora_is_put_on_its_base(self, run):
        base, tuned = (_matcher(str(name), 64, True) for name in (run.parent / "base", run))
        assert base.rule.resolution == 64
        assert not any("lora" in name for name, _ in base.family.denoiser.named_parameters())
        assert any("lora" in name for name, _ in tuned.family.denoiser.named_parameters())
        assert [file.stem for file in _pictures(str(run))] == ["step-000002", "step-000000"]

    def test_dataset_of_the_run(self, run, views, pairs):
        facts = json.loads((run / "card.json").read_text())
        (run / "card.json").write_text(json.dumps({**facts, "dataset": pairs}))
        assert main(["inspect", str(run), "--resolution", "64"]) == 0
        assert views[0].name == pairs and views[0].matcher is not None and len(views[0].run_pictures) == 2
