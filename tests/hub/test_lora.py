# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open

from tests.fixtures.pipelines import PIPELINES, PROMPT_KWARGS
from trl_focus.families import family_class
from trl_focus.hub.lora import lora_metadata, save_lora
from trl_focus.trainer.policy import POLICY, REFERENCE, add_frozen_copy, make_policy


FILE = "pytorch_lora_weights.safetensors"
TARGETS = ["to_q", "to_k", "to_out.0"]
CONFIGS = {
    "rank 4, alpha 16": {"r": 4, "lora_alpha": 16},
    "rank 4, alpha 1": {"r": 4, "lora_alpha": 1},
    "rslora": {"r": 4, "lora_alpha": 4, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 12, "use_dora": True},
    "rank pattern": {"r": 4, "lora_alpha": 8, "rank_pattern": {"to_q": 2}},
    "alpha pattern": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_k": 32}},
    "both patterns": {"r": 4, "lora_alpha": 4, "rank_pattern": {"to_q": 2}, "alpha_pattern": {r"attn\d?.to_k": 32}},
}
# What differs from a plain LoRA otherwise
MORE_CONFIGS = {
    "bias": {"r": 4, "lora_alpha": 16, "lora_bias": True},
    "dropout": {"r": 4, "lora_alpha": 16, "lora_dropout": 0.5},
    "excluded": {"r": 4, "lora_alpha": 16, "exclude_modules": ["to_k"]},
    "expression": {"r": 4, "lora_alpha": 16, "target_modules": r".*\.to_(q|v)"},
    "init": {"r": 4, "lora_alpha": 16, "init_lora_weights": "gaussian"},
    "everything": {
        "r": 4,
        "lora_alpha": 4,
        "use_rslora": True,
        "use_dora": True,
        "rank_pattern": {"to_q": 2},
        "alpha_pattern": {"to_k": 32},
    },
}
NAMES = ["sd15", "sdxl", "flux2_klein"]


def family_of(name):
    pipeline = PIPELINES[name]()
    family = family_class([cls.__name__ for cls in type(pipeline).__mro__])
    return family(pipeline, PROMPT_KWARGS[name])


@torch.no_grad()
def predict(family, denoiser=None):
    channels = family.denoiser.config.in_channels
    x = torch.randn(2, channels, 4, 6, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.8]) if family.denoiser_name == "transformer" else torch.tensor([300, 800])
    return family.predict(denoiser or family.denoiser, x, t, family.encode_prompt(["a cat", "a dog"]), [])


def trained(family, **kwargs):
    """A policy with random LoRA weights."""
    config = LoraConfig(**{"target_modules": TARGETS, **kwargs})
    policy, _ = make_policy(family.pipeline, family.denoiser, config, LoraConfig(target_modules=TARGETS))
    shake(policy)
    return policy.eval()


def shake(policy, adapter=POLICY, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name and f".{adapter}" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def loaded(name, folder):
    family = family_of(name)
    family.pipeline.load_lora_weights(folder)
    # Weights read from a file lie at other offsets in memory, where some kernels round differently.
    # There and back to float64 moves them without changing them.
    family.denoiser.to(torch.float64).to(torch.float32)
    return family


def contents(folder):
    with safe_open(folder / FILE, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", [*CONFIGS, *MORE_CONFIGS])
def test_pipeline_loads_what_was_trained(name, config, tmp_path):
    family = family_of(name)
    base = predict(family)
    policy = trained(family, **(CONFIGS | MORE_CONFIGS)[config])
    expected = predict(family, policy)
    assert (expected - base).abs().max() > 0.02
    save_lora(family.pipeline, family.denoiser_name, policy, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    torch.testing.assert_close(predict(loaded(name, tmp_path)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", CONFIGS)
def test_without_metadata_it_would_load_at_another_strength(name, config, tmp_path):
    """The test above could not fail otherwise."""
    family = family_of(name)
    policy = trained(family, **CONFIGS[config])
    weights = get_peft_model_state_dict(policy)
    weights = {key.removeprefix("base_model.model."): value for key, value in weights.items()}
    family.pipeline.save_lora_weights(tmp_path, **{f"{family.denoiser_name}_lora_layers": weights})
    assert (predict(loaded(name, tmp_path)) - predict(family, policy)).abs().max() > 0.01


@pytest.mark.parametrize("config", [*CONFIGS, *MORE_CONFIGS])
def test_training_continues_what_was_saved(config, tmp_path):
    family = family_of("flux2_klein")
    policy = trained(family, **(CONFIGS | MORE_CONFIGS)[config])
    save_lora(family.pipeline, "transformer", policy, tmp_path / "first")
    again = loaded("flux2_klein", tmp_path / "first")
    continued, _ = make_policy(again.pipeline, again.denoiser, None, LoraConfig(target_modules=TARGETS))
    torch.testing.assert_close(predict(again, continued.eval()), predict(family, policy), rtol=1e-5, atol=1e-5)
    save_lora(again.pipeline, "transformer", continued, tmp_path / "second")
    (first, _), (second, _) = contents(tmp_path / "first"), contents(tmp_path / "second")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_loading_twice_adds_up_to_nothing_new(tmp_path):
    """The same file gives the same output in every fresh pipeline, and unloading it gives the base back."""
    family = family_of("sd15")
    base = predict(family)
    save_lora(family.pipeline, "unet", trained(family, r=4, lora_alpha=16), tmp_path)
    one, other = loaded("sd15", tmp_path), loaded("sd15", tmp_path)
    assert torch.equal(predict(one), predict(other))
    one.pipeline.unload_lora_weights()
    torch.testing.assert_close(predict(one), base, rtol=1e-5, atol=1e-5)


def test_convolutions(tmp_path):
    family = family_of("sd15")
    base = predict(family)
    policy = trained(family, r=4, lora_alpha=16, target_modules=["conv1", "conv_in", "to_q"])
    save_lora(family.pipeline, "unet", policy, str(tmp_path))
    assert (predict(family, policy) - base).abs().max() > 0.05
    torch.testing.assert_close(predict(loaded("sd15", tmp_path)), predict(family, policy), rtol=1e-5, atol=1e-5)


def test_gathered_weights_are_written_in_place_of_the_policys(tmp_path):
    family = family_of("flux2_klein")
    policy = trained(family, r=4, lora_alpha=16)
    save_lora(family.pipeline, "transformer", policy, tmp_path / "own")
    gathered = {key: value.clone() for key, value in policy.state_dict().items()}
    for key in gathered:
        if "lora_" in key:  # gathered weights need not be contiguous, which a file asks for
            gathered[key] = gathered[key].mT.contiguous().mT
    shake(policy, seed=1)
    save_lora(family.pipeline, "transformer", policy, tmp_path / "gathered", gathered)
    (actual, metadata), (expected, expected_metadata) = contents(tmp_path / "gathered"), contents(tmp_path / "own")
    assert metadata == expected_metadata
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_other_adapter(tmp_path):
    family = family_of("flux2_klein")
    policy = trained(family, r=4, lora_alpha=16)
    add_frozen_copy(policy)
    before = predict(family, policy)
    shake(policy, seed=1)
    save_lora(family.pipeline, "transformer", policy, tmp_path, adapter_name=REFERENCE)
    torch.testing.assert_close(predict(loaded("flux2_klein", tmp_path)), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapter", [POLICY, REFERENCE])
def test_file_holds_one_adapter(adapter, tmp_path):
    family = family_of("flux2_klein")
    policy = trained(family, r=4)
    add_frozen_copy(policy)
    save_lora(family.pipeline, "transformer", policy, tmp_path, adapter_name=adapter)
    weights, _ = contents(tmp_path)
    assert len(weights) == sum(f".{adapter}." in name for name, _ in policy.named_parameters())
    assert all(
        key.startswith("transformer.") and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in weights
    )


class TestMetadata:
    @pytest.mark.parametrize("config", [*CONFIGS, *MORE_CONFIGS])
    def test_gives_back_the_config(self, config):
        config = LoraConfig(**{"target_modules": TARGETS, **(CONFIGS | MORE_CONFIGS)[config]})
        metadata = json.loads(json.dumps(lora_metadata(config)))
        assert {"r", "lora_alpha"} <= metadata.keys()
        again = LoraConfig(**metadata).to_dict()
        expected = config.to_dict()
        for key in ("init_lora_weights", "lora_dropout"):  # of training alone
            again.pop(key), expected.pop(key)
        assert again == expected

    def test_names_only_what_differs_from_the_defaults(self):
        """So that another PEFT, which lacks some field, loads it as well."""
        metadata = lora_metadata(LoraConfig(target_modules={"b", "a"}, init_lora_weights="gaussian"))
        assert metadata == {"r": 8, "lora_alpha": 8, "rank_pattern": {}, "target_modules": ["a", "b"]}

    def test_is_in_the_file(self, tmp_path):
        family = family_of("sd15")
        save_lora(family.pipeline, "unet", trained(family, r=4, lora_alpha=16), tmp_path)
        metadata = json.loads(contents(tmp_path)[1]["lora_adapter_metadata"])
        expected = {"r": 4, "lora_alpha": 16, "rank_pattern": {}, "target_modules": sorted(TARGETS)}
        assert metadata == {f"unet.{key}": value for key, value in expected.items()}
