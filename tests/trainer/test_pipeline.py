# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import os

from diffusers import DiffusionPipeline

from tests.fixtures.pipelines import PIPELINES
from tests.fixtures.trainers import make_trainer


def test_loading_is_whole_where_fsdp_would_fill_in(tmp_path, monkeypatch):
    PIPELINES["flux2_klein"]().save_pretrained(tmp_path / "base")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    load, seen = DiffusionPipeline.from_pretrained, []

    def spy(*args, **kwargs):
        seen.append(os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING"))
        return load(*args, **kwargs)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", spy)
    make_trainer(output_dir=tmp_path, pipeline=str(tmp_path / "base"))
    assert seen == [None]
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
