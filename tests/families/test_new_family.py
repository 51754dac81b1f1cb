# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""`docs/new_family.md` as its reader would try it: its family is checked, trains, and is loaded, from outside of the package."""

import re
from pathlib import Path

import pytest
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
)
from transformers import UMT5Config, UMT5EncoderModel

from examples.photographs.pipeline import seeded, spread_weights
from tests.fixtures.flux import t5_tokenizer
from tests.fixtures.pairs import make_pairs
from trl_focus.families import FAMILIES, family_class


PAGE = (Path(__file__).parents[2] / "docs" / "new_family.md").read_text()
FAMILY, CHECK, TRAIN = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def tiny_auraflow(seed: int = 0) -> AuraFlowPipeline:
    tokenizer = t5_tokenizer()
    config = UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    with seeded(seed):
        return AuraFlowPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(config).eval(),
            vae=spread_weights(
                AutoencoderKL(
                    down_block_types=("DownEncoderBlock2D",) * 4,
                    up_block_types=("UpDecoderBlock2D",) * 4,
                    block_out_channels=(8, 8, 8, 8),
                    layers_per_block=1,
                    norm_num_groups=2,
                    scaling_factor=1.5,
                )
            ),
            transformer=spread_weights(
                AuraFlowTransformer2DModel(
                    sample_size=32,
                    num_mmdit_layers=1,
                    num_single_dit_layers=1,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=32,
                    caption_projection_dim=32,
                    pos_embed_max_size=64,
                )
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        )


@pytest.fixture
def names(monkeypatch):
    monkeypatch.delitem(FAMILIES, "AuraFlowPipeline", raising=False)  # so that it is gone again afterwards
    names = {}
    exec(FAMILY, names)
    exec(CHECK, names)
    yield names
    FAMILIES.pop("AuraFlowPipeline")


def test_its_family_is_found(names):
    assert family_class(["MyAuraFlow", "AuraFlowPipeline"]) is names["AuraFlow"]


def test_its_check_passes_and_finds_mistakes(names):
    names["check"](tiny_auraflow(), max_sequence_length=64)
    predict, encode_image = names["AuraFlow"].predict, names["AuraFlow"].encode_image
    for mistake in (
        {"predict": lambda *args: -predict(*args)},
        {"predict": lambda self, denoiser, x, t, *args: predict(self, denoiser, x, 1 - t, *args)},
        {"predict": lambda self, denoiser, x, t, *args: predict(self, denoiser, x, 1000 * t, *args)},
        {"encode_image": lambda *args: encode_image(*args) / 1.5},
    ):
        FAMILIES["AuraFlowPipeline"] = type("Mistaken", (names["AuraFlow"],), mistake)
        with pytest.raises(AssertionError, match="not close"):
            names["check"](tiny_auraflow(), max_sequence_length=64)


def test_its_family_trains_and_is_loaded(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = TRAIN
    for old, new in [("resolution=512", "resolution=64, use_cpu=True, report_to='none', disable_tqdm=True")]:
        assert old in train
        train = train.replace(old, new)
    names.update(pipe=tiny_auraflow(), pairs=make_pairs(2))
    exec(train, names)
    logs = names["trainer"].state.log_history
    assert logs[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert logs[-2]["rewards/margins"] > 0.05
    fresh = tiny_auraflow()
    fresh.load_lora_weights("aura-dpo")
    assert fresh.get_active_adapters()
