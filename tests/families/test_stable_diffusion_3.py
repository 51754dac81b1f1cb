# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import pytest

from tests.fixtures.families import check_calls
from tests.fixtures.pipelines import PIPELINES
from trl_focus.families.stable_diffusion_3 import StableDiffusion3


def test_without_t5(monkeypatch):
    """The pipeline takes zeros for it, and CLIP decides how much of a prompt is read."""
    pipeline = PIPELINES["sd3"]()
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    family = StableDiffusion3(pipeline, {"max_sequence_length": 256})
    assert family.max_prompt_tokens == 75
    family = StableDiffusion3(pipeline, {"max_sequence_length": 64})
    check_calls(family, "sd3", [], 96, 64, monkeypatch)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2", "tokenizer", "transformer"])
def test_others_are_needed(name):
    pipeline = PIPELINES["sd3"]()
    setattr(pipeline, name, None)
    with pytest.raises(ValueError, match=f"The pipeline has no `{name}`, and training needs it"):
        StableDiffusion3(pipeline)
