# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The README's example runs as it stands, but for the model and the data, which are small ones from here."""

import re
from pathlib import Path

import datasets
import pytest

from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES
from tests.fixtures.trainers import make_focus_trainer
from trl_focus import FocusMapCallback


ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_example_trains_and_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PIPELINES["sd15"]().save_pretrained("base")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: make_pairs(4))
    train, load = BLOCKS[:2]
    for old, new in [
        ('"black-forest-labs/FLUX.2-klein-base-4B"', '"base"'),
        ("resolution=512", "resolution=64, use_cpu=True, report_to='none'"),
        ("max_steps=500", "max_steps=1"),
    ]:
        assert old in train
        train = train.replace(old, new)
    names = {}
    exec(train, names)
    assert names["trainer"].state.global_step == 1
    pipe = PIPELINES["sd15"]()
    exec(load, {"pipe": pipe})
    assert pipe.get_active_adapters()


def test_examples_of_the_method_page(tmp_path, capsys):
    """Its map and its callback train; its diagnostic prints a table."""
    own_map, diagnostic, callback = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "focus.md").read_text(), flags=re.DOTALL
    )
    names = {"FocusMapCallback": FocusMapCallback}
    own_map, use = own_map.split("FocusDPOTrainer(")
    assert "focus_map=where_another_subject_shows" in use
    exec(own_map, names)
    exec(callback, names)
    trainer = make_focus_trainer(
        tmp_path,
        focus_map=names["where_another_subject_shows"],
        callbacks=[names["NoFocusOnSmallSubjects"]()],
        train_dataset=make_pairs(16, n_references=2),
        max_steps=2,
    )
    exec(diagnostic, {"trainer": trainer})
    assert "own map" in capsys.readouterr().out
    trainer.train()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_to_files_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = [t for t in re.findall(r"\]\(([^)#]+)", text) if "://" not in t]
    assert all(((ROOT / page).parent / target).exists() for target in targets), targets
