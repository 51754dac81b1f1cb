# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The page's example runs as it stands, but for the model, which is a tiny one, and the detector."""

import json
import re
from pathlib import Path

import PIL.Image

from tests.fixtures.embedders import save_dinov2


PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert "facebook/dinov2-base" in code
    for name in ("base-images", "lora-images"):
        Path(name).mkdir()
        PIL.Image.new("RGB", (16, 16), (51, 51, 51)).save(f"{name}/0_0.png")
        PIL.Image.new("RGB", (16, 16), "red").save(f"{name}/ref.png")
    entries = [{"prompt": "two", "image_paths": ["base-images/ref.png", "lora-images/ref.png"]}]
    Path("my-benchmark.json").write_text(json.dumps(entries))
    detected = [((0, 0, 8, 16), None), ((8, 0, 16, 16), None)]
    exec(
        code.replace("facebook/dinov2-base", save_dinov2(tmp_path / "model")), {"my_detector": lambda image: detected}
    )
    report = json.loads(Path("results/report.json").read_text())
    assert report["means"]["lora"]["brightness"]["mean"] == 0.2
    assert report["means"]["base"]["instances/found"]["mean"] == 1 and report["problems"] == []
