# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The page's example runs as it stands, but for what its reader brings and for the model, which is a tiny one."""

import re
from pathlib import Path

import numpy as np
import PIL.Image
import yaml

from tests.fixtures.embedders import save_dinov2
from tests.fixtures.pairs import make_pairs, random_image
from trl_focus.cli.rounds import FIELDS
from trl_focus.data import load_preferences
from trl_focus.evaluation import Instance, drawing


TEXT = (Path(__file__).parents[2] / "docs" / "pairs.md").read_text()


def test_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        drawing, "draw_image", lambda pipe, item, seed, **settings: random_image(np.random.default_rng(seed))
    )
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    mask = np.ones((64, 64), np.float32)
    names = {
        "pipe": None,
        "prompts": make_pairs(3, n_references=1).select_columns(["prompt", "references"]),
        "my_detector": lambda image, item: [Instance((0, 0, 64, 64), mask, 0)],
        "my_reward_model": lambda prompt, image: image.convert("L").resize((1, 1)).getpixel((0, 0)) / 10,
    }
    assert "facebook/dinov2-base" in code and "instances/leakage" in code
    # of one subject nothing leaks
    code = code.replace("facebook/dinov2-base", save_dinov2(tmp_path / "model")).replace(
        '"instances/leakage": -0.5, ', ""
    )
    exec(code, names)
    pairs = load_preferences("sampled/pairs")
    assert len(pairs) >= 1 and isinstance(pairs[0]["chosen_masks"][0], PIL.Image.Image)


def test_file_of_rounds():
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    assert list(yaml.safe_load(text)) == list(FIELDS)
