# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json

import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from tests.fixtures.pipelines import PIPELINES, PROMPT_KWARGS
from trl_focus.families import family_class
from trl_focus.trainer.policy import (
    POLICY,
    REFERENCE,
    add_frozen_copy,
    as_reference,
    check_lora_config,
    make_policy,
)


NAMES = ["sd15", "flux2_klein"]
TARGETS = ["to_q", "to_k"]


def default():
    return LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS)


def family_of(name):
    pipeline = PIPELINES[name]()
    family = family_class([cls.__name__ for cls in type(pipeline).__mro__])
    return family(pipeline, PROMPT_KWARGS[name])


def predict(family, denoiser=None, grad=False):
    channels = family.denoiser.config.in_channels
    x = torch.randn(2, channels, 4, 6, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.8]) if family.denoiser_name == "transformer" else torch.tensor([300, 800])
    with torch.no_grad():
        prompt = family.encode_prompt(["a cat", "a dog"])
    with torch.set_grad_enabled(grad):
        return family.predict(denoiser or family.denoiser, x, t, prompt, [])


def shake(model, adapter=POLICY, seed=0):
    """Moves the LoRA weights of one adapter, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and f".{adapter}" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def policy_of(family, peft_config=None, **kwargs):
    peft_config = LoraConfig(**kwargs) if kwargs else peft_config
    return make_policy(family.pipeline, family.denoiser, peft_config, default())


def trainable(policy):
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def lora_names(policy, adapter=POLICY):
    return {name for name, _ in policy.named_parameters() if "lora_" in name and f".{adapter}" in name}


def differs(tensor, other):
    return (tensor - other).abs().max().item() > 0.01


def adapters_of(denoiser):
    return {name for layer in denoiser.modules() if isinstance(layer, BaseTunerLayer) for name in layer.lora_A}


# ---- Configurations ----


@pytest.mark.parametrize(
    "field,value",
    [
        ("bias", "all"),
        ("bias", "lora_only"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "eva"),
        ("modules_to_save", ["proj_out"]),
        ("layer_replication", [(0, 1), (0, 1)]),
        ("trainable_token_indices", [0]),
        ("kasa_config", {}),
    ],
)
def test_settings_that_change_the_base_model_are_refused(field, value):
    config = LoraConfig(**({"loftq_config": {"loftq_bits": 4}} if value == "loftq" else {}))
    if not hasattr(config, field):
        pytest.skip(f"this PEFT has no {field}")
    setattr(config, field, value)
    with pytest.raises(ValueError, match=rf"peft_config\.{field}="):
        check_lora_config(config)
    family = family_of("flux2_klein")
    with pytest.raises(ValueError, match=rf"peft_config\.{field}="):
        policy_of(family, config)
    assert not hasattr(family.denoiser, "peft_config")


@pytest.mark.parametrize(
    "config", [LoKrConfig(), LoHaConfig(), IA3Config(), {"r": 4}, "lora", LoraConfig], ids=lambda c: str(type(c))
)
def test_other_methods_and_other_objects_are_refused(config):
    with pytest.raises(TypeError, match="LoraConfig"):
        policy_of(family_of("flux2_klein"), config)


SETTINGS = {
    "plain": {"r": 2},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "bias": {"lora_bias": True},
    "dropout": {"lora_dropout": 0.5},
    "patterns": {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 3}},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_adapter_off_is_the_untouched_denoiser(name, setting):
    family = family_of(name)
    base = predict(family)
    policy, _ = policy_of(family, **SETTINGS[setting])
    shake(policy)
    assert differs(predict(family, policy), base)
    with as_reference(policy, None):
        assert torch.equal(predict(family, policy), base)
    assert differs(predict(family, policy), base)


# ---- Policies ----


@pytest.mark.parametrize("name", NAMES)
class TestNewLora:
    def test_default(self, name):
        family = family_of(name)
        base = predict(family)
        policy, continued = policy_of(family)
        assert not continued
        assert isinstance(policy, PeftModel)
        assert policy.peft_config[POLICY].r == 4
        assert policy.peft_config[POLICY].lora_alpha == 16
        assert policy.get_base_model() is family.denoiser
        assert torch.equal(predict(family, policy), base)

    def test_only_the_lora_is_trained(self, name):
        family = family_of(name)
        policy, _ = policy_of(family)
        assert trainable(policy) == lora_names(policy)
        layers = {key.rsplit(".lora_", 1)[0].rsplit(".", 1)[1] for key in trainable(policy)}
        assert layers == set(TARGETS)
        predict(family, policy, grad=True).square().mean().backward()
        assert {key for key, parameter in policy.named_parameters() if parameter.grad is not None} == trainable(policy)

    def test_given(self, name):
        policy, continued = policy_of(family_of(name), r=2, lora_alpha=3, target_modules=["to_v"])
        assert not continued
        assert policy.peft_config[POLICY].r == 2
        assert all(".to_v." in key for key in trainable(policy))

    def test_without_target_modules_it_takes_the_defaults(self, name):
        config = LoraConfig(r=2, lora_alpha=3)
        policy, _ = policy_of(family_of(name), config)
        expected, _ = policy_of(family_of(name))
        assert policy.peft_config[POLICY].r == 2
        assert trainable(policy) == trainable(expected)
        assert config == LoraConfig(r=2, lora_alpha=3)  # may be used for another model

    def test_pipeline_runs_with_the_policy(self, name):
        family = family_of(name)
        policy, _ = policy_of(family)
        shake(policy)
        assert getattr(family.pipeline, family.denoiser_name) is family.denoiser
        assert torch.equal(predict(family, family.denoiser), predict(family, policy))


def save_peft(family, folder, config):
    """A LoRA as diffusers' training scripts write it."""
    family.denoiser.add_adapter(config)
    shake(family.denoiser)
    name = family.denoiser_name
    family.pipeline.save_lora_weights(
        folder,
        **{f"{name}_lora_layers": get_peft_model_state_dict(family.denoiser)},
        **_collate_lora_metadata({name: family.denoiser}),
    )


LOADED = {
    "alpha": {"r": 4, "lora_alpha": 16},
    "rslora": {"r": 4, "lora_alpha": 16, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 16, "use_dora": True},
    "patterns": {"r": 4, "lora_alpha": 4, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 16}},
    "dropout": {"r": 4, "lora_alpha": 16, "lora_dropout": 0.5},
}


def family_with_lora(name, folder, *adapters, **kwargs):
    """A pipeline that came with one LoRA, or with several of the same."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": ["to_v", *TARGETS], **kwargs})
    save_peft(family_of(name), folder, config)
    family = family_of(name)
    for adapter in adapters or ("mine",):
        family.pipeline.load_lora_weights(folder, adapter_name=adapter)
    family.denoiser.eval()  # freshly loaded dropout layers are in training mode
    return family


@pytest.mark.parametrize("name", NAMES)
class TestLoadedLora:
    @pytest.mark.parametrize("setting", LOADED)
    def test_policy_begins_as_the_pipeline_was(self, name, setting, tmp_path):
        base = predict(family_of(name))
        family = family_with_lora(name, tmp_path, **LOADED[setting])
        before = predict(family)
        assert differs(before, base)
        policy, continued = policy_of(family)
        assert continued
        torch.testing.assert_close(predict(family, policy.eval()), before, rtol=1e-6, atol=1e-6)
        with as_reference(policy, None):
            torch.testing.assert_close(predict(family, policy), base, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("frozen", [False, True])
    def test_it_is_trained_and_it_alone(self, name, frozen, tmp_path):
        family = family_with_lora(name, tmp_path, inference_mode=frozen)
        policy, _ = policy_of(family)
        assert (
            policy.peft_config.keys() == family.denoiser.peft_config.keys() == adapters_of(family.denoiser) == {POLICY}
        )
        assert trainable(policy) == lora_names(policy)
        assert any(".to_v." in key for key in trainable(policy))  # its own targets, not the default's
        assert not policy.peft_config[POLICY].inference_mode

    def test_with_a_peft_config_too_it_is_refused(self, name, tmp_path):
        family = family_with_lora(name, tmp_path)
        before = predict(family)
        with pytest.raises(ValueError, match="unload_lora_weights"):
            policy_of(family, default())
        # Both ways out that the message names are still open
        assert torch.equal(predict(family), before)
        policy, continued = policy_of(family)
        assert continued
        torch.testing.assert_close(predict(family, policy), before, rtol=1e-6, atol=1e-6)

    def test_unloaded_it_is_gone(self, name, tmp_path):
        family = family_with_lora(name, tmp_path)
        family.pipeline.unload_lora_weights()
        policy, continued = policy_of(family, default())
        assert not continued
        torch.testing.assert_close(predict(family, policy), predict(family_of(name)), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("setting", ["alpha", "rslora"])
    def test_scaled_is_refused(self, name, setting, tmp_path):
        family = family_with_lora(name, tmp_path, **LOADED[setting])
        before = predict(family)
        family.pipeline.set_adapters("mine", 0.5)
        with pytest.raises(ValueError, match=r"'mine' is fused or scaled.*set_adapters\('mine', 1.0\)"):
            policy_of(family)
        family.pipeline.set_adapters("mine", 1.0)
        policy, _ = policy_of(family)
        torch.testing.assert_close(predict(family, policy), before, rtol=1e-6, atol=1e-6)

    def test_fused_is_refused(self, name, tmp_path):
        family = family_with_lora(name, tmp_path)
        before = predict(family)
        family.pipeline.fuse_lora()
        with pytest.raises(ValueError, match="unfuse_lora"):
            policy_of(family)
        family.pipeline.unfuse_lora()
        policy, _ = policy_of(family)
        torch.testing.assert_close(predict(family, policy), before, rtol=1e-5, atol=1e-5)

    def test_two_are_refused(self, name, tmp_path):
        family = family_with_lora(name, tmp_path, "first", "second")
        with pytest.raises(ValueError, match="first.*second"):
            policy_of(family)
        assert adapters_of(family.denoiser) == {"first", "second"}

    def test_settings_that_change_the_base_model_are_refused(self, name, tmp_path):
        family = family_of(name)
        family.denoiser.add_adapter(LoraConfig(r=4, target_modules=TARGETS, bias="all"), "mine")
        with pytest.raises(ValueError, match=r"bias='all'"):
            policy_of(family)

    @pytest.mark.parametrize("method", [LoKrConfig, LoHaConfig, IA3Config])
    def test_other_methods_are_refused(self, name, method):
        family = family_of(name)
        settings = {"feedforward_modules": []} if method is IA3Config else {"r": 4}
        family.denoiser.add_adapter(method(target_modules=["to_q"], **settings), "mine")
        with pytest.raises(TypeError, match=f"LoraConfig.*{method.__name__}"):
            policy_of(family)

    def test_a_trainers_own_is_continued(self, name):
        """A second trainer on the pipeline of the first."""
        family = family_of(name)
        first, _ = policy_of(family, r=2, lora_alpha=7, target_modules=["to_v"])
        shake(first)
        before, targets = predict(family, first), trainable(first)
        second, continued = policy_of(family)
        assert continued
        assert second.peft_config[POLICY].lora_alpha == 7
        assert trainable(second) == targets
        assert torch.equal(predict(family, second), before)
        shake(second, seed=1)
        assert differs(predict(family, second), before)


@pytest.mark.parametrize("denoiser_too", [True, False])
def test_lora_of_a_text_encoder_is_refused(denoiser_too, tmp_path):
    family = family_of("sd15")
    config = LoraConfig(r=4, target_modules=["to_q"])
    family.denoiser.add_adapter(config)
    family.pipeline.text_encoder.add_adapter(LoraConfig(r=4, target_modules=["q_proj"]))
    layers = {"text_encoder_lora_layers": get_peft_model_state_dict(family.pipeline.text_encoder)}
    if denoiser_too:
        layers["unet_lora_layers"] = get_peft_model_state_dict(family.denoiser)
    family.pipeline.save_lora_weights(tmp_path, **layers)
    family = family_of("sd15")
    family.pipeline.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="text_encoder"):
        policy_of(family)
    family.pipeline.unload_lora_weights()
    assert not policy_of(family)[1]


def test_alphas_of_each_layer_are_kept(tmp_path):
    """A kohya file: no metadata, and one alpha a layer."""
    family, weights = family_of("sd15"), {}
    generator = torch.Generator().manual_seed(0)
    for index, (key, layer) in enumerate(family.denoiser.named_modules()):
        if key.endswith(("attn1.to_q", "attn2.to_k")):
            name = "lora_unet_" + key.replace(".", "_")
            weights[f"{name}.lora_down.weight"] = torch.randn(4, layer.in_features, generator=generator)
            weights[f"{name}.lora_up.weight"] = torch.randn(layer.out_features, 4, generator=generator)
            weights[f"{name}.alpha"] = torch.tensor(1.0 + index % 7)
    save_file(weights, tmp_path / "pytorch_lora_weights.safetensors")
    base = predict(family)
    family.pipeline.load_lora_weights(tmp_path)
    before = predict(family)
    assert differs(before, base)
    assert family.denoiser.peft_config["default_0"].alpha_pattern
    policy, continued = policy_of(family)
    assert continued
    torch.testing.assert_close(predict(family, policy), before, rtol=1e-6, atol=1e-6)


# ---- References ----


@pytest.fixture(params=["new", "patterns", "dora"])
def with_copy(request):
    family = family_of("flux2_klein")
    config = {"r": 4, "lora_alpha": 16, "target_modules": TARGETS, **LOADED.get(request.param, {})}
    policy, _ = policy_of(family, **config)
    shake(policy)
    before = trainable(policy)
    add_frozen_copy(policy)
    assert trainable(policy) == before
    assert policy.active_adapter == POLICY
    return family, policy


class TestFrozenCopy:
    def test_gives_the_policys_output_and_stays_put(self, with_copy):
        family, policy = with_copy
        before = predict(family, policy)
        with as_reference(policy, REFERENCE):
            assert torch.equal(predict(family, policy), before)
        optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.1)
        predict(family, policy, grad=True).square().mean().backward()
        optimizer.step()
        assert differs(predict(family, policy), before)
        with as_reference(policy, REFERENCE):
            assert torch.equal(predict(family, policy), before)

    def test_has_no_gradient(self, with_copy):
        family, policy = with_copy
        assert lora_names(policy, REFERENCE)
        with as_reference(policy, REFERENCE):
            assert not predict(family, policy, grad=True).requires_grad
        predict(family, policy, grad=True).square().mean().backward()
        grads = {key for key, parameter in policy.named_parameters() if parameter.grad is not None}
        assert grads == lora_names(policy)

    def test_does_not_share_memory(self, with_copy):
        _, policy = with_copy
        own = {parameter.data_ptr() for key, parameter in policy.named_parameters() if f".{POLICY}" in key}
        copies = {parameter.data_ptr() for key, parameter in policy.named_parameters() if f".{REFERENCE}" in key}
        assert len(own) == len(copies)
        assert not own & copies


@pytest.mark.parametrize("adapter", [None, REFERENCE])
@pytest.mark.parametrize("failing", [False, True])
def test_as_reference_leaves_the_policy_as_it_was(with_copy, adapter, failing):
    family, policy = with_copy
    shake(policy, seed=1)  # so that the policy, its copy and the base all differ
    before, flags = predict(family, policy), trainable(policy)
    assert flags == lora_names(policy)
    for _ in range(2):
        try:
            with as_reference(policy, adapter):
                assert differs(predict(family, policy), before)
                if failing:
                    raise KeyError
        except KeyError:
            assert failing
        assert policy.active_adapter == POLICY
        assert policy.active_adapters == [POLICY]
        assert trainable(policy) == flags
        assert torch.equal(predict(family, policy), before)


@pytest.mark.parametrize("adapter", [None, REFERENCE])
def test_gradients_do_not_depend_on_a_reference_pass_before(with_copy, adapter):
    family, policy = with_copy

    def gradients():
        policy.zero_grad()
        predict(family, policy, grad=True).square().mean().backward()
        return [parameter.grad for parameter in policy.parameters() if parameter.requires_grad]

    expected = gradients()
    with torch.no_grad(), as_reference(policy, adapter):
        predict(family, policy)
    actual = gradients()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# ---- Gradient checkpointing ----


def passes(family, policy):
    """Loss, gradients, and how often each target layer was called, in one forward and backward."""
    policy.train()
    calls = dict.fromkeys(trainable(policy), 0)
    hooks = []
    for key, layer in policy.named_modules():
        if isinstance(layer, BaseTunerLayer):

            def count(*args, key=key):
                calls[key] = calls.get(key, 0) + 1

            hooks.append(layer.register_forward_pre_hook(count))
    loss = predict(family, policy, grad=True).square().mean()
    loss.backward()
    for hook in hooks:
        hook.remove()
    gradients = {key: p.grad.clone() for key, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return loss, gradients, max(calls.values())


@pytest.mark.parametrize("name", [*NAMES, "sdxl"])
@pytest.mark.parametrize("method", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
@pytest.mark.parametrize("kwargs", [None, {}, {"use_reentrant": False}, {"preserve_rng_state": False}])
def test_checkpointing_changes_neither_loss_nor_gradients(name, method, kwargs):
    family = family_of(name)
    policy, _ = policy_of(family)
    shake(policy)
    loss, gradients, calls = passes(family, policy)
    assert calls == 1
    getattr(policy, method)(*([] if kwargs is None else [kwargs]))
    checkpointed_loss, checkpointed, calls = passes(family, policy)
    assert calls == 2
    assert torch.equal(loss, checkpointed_loss)
    assert gradients.keys() == checkpointed.keys() == trainable(policy)
    assert all(torch.equal(gradients[key], checkpointed[key]) for key in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("method", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
@pytest.mark.parametrize(
    "kwargs,settings", [({"use_reentrant": True}, {}), (None, {"every_n_layers": 2}), (None, {"offload": True})]
)
def test_other_ways_of_checkpointing_are_refused(method, kwargs, settings):
    family = family_of("flux2_klein")
    policy, _ = policy_of(family)
    with pytest.raises(ValueError, match="use_reentrant.*every_n_layers.*offload"):
        getattr(policy, method)(kwargs, **settings)
    assert not family.denoiser.is_gradient_checkpointing


def test_a_denoiser_that_checkpoints_already():
    family = family_of("sd15")
    family.denoiser.enable_gradient_checkpointing()
    policy, _ = policy_of(family)
    loss, gradients, calls = passes(family, policy)
    assert calls == 2
    assert gradients.keys() == trainable(policy)


# ---- What others read from the model ----


@pytest.mark.parametrize("name,kind", [("sd15", "UNet2DConditionModel"), ("flux2_klein", "Flux2Transformer2DModel")])
def test_config(name, kind):
    family = family_of(name)
    policy, _ = policy_of(family)
    config = policy.config
    assert config.model_type == config["model_type"] == kind
    assert config.in_channels == family.denoiser.config.in_channels
    assert json.loads(config.to_json_string())["model_type"] == kind
    assert config.to_dict()["in_channels"] == config.in_channels
    assert not hasattr(config, "text_config")


def test_saving_writes_no_card(tmp_path):
    policy, _ = policy_of(family_of("flux2_klein"))
    policy.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
