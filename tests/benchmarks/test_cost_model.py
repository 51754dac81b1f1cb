# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import functools
import math

import pytest
import torch
from peft import LoraConfig

from benchmarks.cost_model import measure
from benchmarks.cost_model.cache import cache
from benchmarks.cost_model.cluster import sent_bytes
from benchmarks.cost_model.memory import Sizes, kept_bytes, memory, offload, sizes, weight_bytes
from benchmarks.cost_model.models import MODELS, on_meta, policy_on_meta, trace_policy, trace_vae
from benchmarks.cost_model.operations import forward_flops, product_flops, step
from tests.fixtures.families import denoiser_inputs, family_of
from trl_focus.trainer.offload import blocks_of, copied, offload_blocks
from trl_focus.trainer.policy import make_policy


# what their names say, and SDXL's paper (https://huggingface.co/papers/2307.01952); they are rounded
BILLIONS = {
    "SDXL": 2.6,
    "FLUX.2 klein 4B": 4,
    "FLUX.2 klein 9B": 9,
    "FLUX.1 Kontext": 12,
    "Qwen-Image-Edit": 20,
    "FLUX.2 dev": 32,
}


@pytest.mark.parametrize("name", MODELS)
def test_configurations_are_those_of_the_models(name):
    weights = sum(weight.numel() for weight in on_meta(MODELS[name].denoiser).parameters())
    assert weights / 1e9 == pytest.approx(BILLIONS[name], rel=0.035)


@pytest.mark.parametrize(
    "family", ["flux2", "flux2_klein", "kontext", "qwen_image_edit_plus", "sd3", "sdxl", "z_image"]
)
def test_a_step_is_as_predicted(family):
    found = measure.step_of(family)
    for name in ("forward", "reference", "backward", "recomputed"):
        predicted, measured = found[name]
        assert predicted == measured > 0, name
    for name in ("kept", "kept, checkpointing"):
        predicted, measured = found[name]
        assert predicted == pytest.approx(measured, rel=0.06), name  # the measured bytes have the output as well
    # gradients on their way, which the prediction leaves out, come on top
    predicted, measured = found["at most, checkpointing"]
    assert found["kept, checkpointing"][1] < predicted < 1.05 * measured


def test_checkpointing_keeps_less_and_computes_more():
    found = measure.step_of("flux2_klein")
    assert found["kept, checkpointing"][0] < 0.1 * found["kept"][0]
    assert 0.9 * found["forward"][0] < found["recomputed"][0] < found["forward"][0]


@functools.cache
def klein_trace(*sides: int):
    return trace_policy(MODELS["FLUX.2 klein 4B"], [*sides])


def test_frozen_weights_have_no_gradient():
    """A backward pass through frozen weights costs a forward pass, and none where no gradient is needed: before the first LoRA."""
    frozen = [product for product in klein_trace(256).products if not product.trained]
    assert not any(product.weight_gradient for product in frozen)
    backward = sum(product_flops(product) for product in frozen if product.input_gradient)
    assert 0.95 < backward / sum(map(product_flops, frozen)) < 1


def test_forward_flops_are_two_for_each_weight_and_token():
    """At few tokens attention is little, and nearly all weights see all tokens: the rule of thumb for transformers."""
    model = MODELS["FLUX.2 klein 4B"]
    tokens = 256**2 // 16**2 + 512
    rule = 2 * 2 * tokens * sizes(policy_on_meta(model)).frozen  # two images
    assert (
        0.6 * rule < forward_flops(klein_trace(256), lora=False) < rule
    )  # a double-stream block's weights see one stream each


def test_lora_and_optimizer_take_what_a_trainer_holds(tmp_path):
    for name, (predicted, measured) in measure.optimizer_states(tmp_path).items():
        assert predicted == measured > 0, name


def test_quantized_weights_take_what_bitsandbytes_stores():
    for name, (predicted, measured) in measure.quantized_weights().items():
        assert predicted == measured, name


def test_offloaded_weights_take_what_blocks_bring(monkeypatch):
    family = family_of("flux2_klein")
    lora = LoraConfig(target_modules=family.lora_target_modules)
    policy, _ = make_policy(family.pipeline, family.denoiser, lora, lora)
    brought = []

    def counted(weight, device):
        brought.append(weight.numel() * 2)  # in bf16
        return copied(weight, device)

    monkeypatch.setattr("trl_focus.trainer.offload.copied", counted)
    predicted = offload(policy)
    offload_blocks(policy, [family.denoiser], torch.device("cpu"))
    resting = {*policy._ddp_params_and_buffers_to_ignore}
    with torch.no_grad():
        family.predict(policy, *denoiser_inputs(family, "flux2_klein"))
    assert predicted.sent == sum(brought)
    outside = sum(2 * weight.numel() for name, weight in policy.named_parameters() if name not in resting)
    largest = max(
        sum(2 * w.numel() for w in block.parameters() if not w.requires_grad) for block in blocks_of(family.denoiser)
    )
    assert predicted.card == outside - 2 * sum(sizes(policy).lora) + largest
    assert predicted.host == sum(2 ** math.ceil(math.log2(size)) for size in brought) > predicted.sent


def test_storages_are_refused_by_name():
    with pytest.raises(ValueError, match="'bf16', 'int8' or 'nf4'"):
        weight_bytes(Sizes([(1, 1)], 0, []), "int4")


def test_cache_takes_its_bytes_on_disk(tmp_path):
    for name, (predicted, measured) in measure.cache_files(tmp_path).items():
        assert predicted <= measured < 1.1 * predicted, (
            name
        )  # headers, some hundred bytes a row, are more than at full size


def test_cache_of_a_pair():
    model = MODELS["FLUX.2 klein 4B"]
    found = cache(model, [1024, 512], draws=3, subjects=1)
    assert found.images == 2 * 64 * 64 * 128 * 2
    assert found.references == 32 * 32 * 128 * 2
    assert found.errors == 3 * 2 * 64 * 64 * 4
    assert found.masks == 4 * (2 * 64 * 64 + 32 * 32)
    assert found.prompt == 512 * (7680 * 2 + 4 * 8)


def test_network():
    lora = Sizes(linear=[(1000, 1000)], other=0, lora=[500, 500])
    assert sent_bytes(lora, 1, "fsdp2") == 0
    assert sent_bytes(lora, 4, "ddp") == sent_bytes(lora, 4, "zero2") == 2 * 4000 * 3 // 4
    assert sent_bytes(lora, 4, "fsdp2") == (3 * (2_000_000 + 4000) + 4000) * 3 // 4
    assert sent_bytes(lora, 4, "zero3", reference_precomputed=True) == (2 * (2_000_000 + 4000) + 4000) * 3 // 4
    with pytest.raises(ValueError, match="'ddp', 'zero2', 'fsdp2', 'zero3'"):
        sent_bytes(lora, 2, "fsdp")


def test_what_caching_can_gain_over_the_published_sdxl_script():
    model = MODELS["SDXL"]
    trace = trace_policy(model, [1024])
    work = step(model, [1024], trace)
    whole = work.total(checkpointing=False)
    cached = {"checkpointing": False, "images_cached": True, "prompts_cached": True}
    assert whole / work.total(**cached) == pytest.approx(1.23, abs=0.03)
    assert whole / work.total(**cached, reference_precomputed=True) == pytest.approx(1.8, abs=0.07)


def test_klein_with_two_references_fits_24_gb():
    """By the model; gradients on their way take another half of the activations, and too long to simulate here."""
    taken = memory(sizes(policy_on_meta(MODELS["FLUX.2 klein 4B"])), klein_trace(1024, 1024, 1024), "nf4")
    assert taken.weights < 2.5e9
    assert taken.total + taken.activations / 2 < 24e9
    assert kept_bytes(klein_trace(1024, 1024, 1024), checkpointing=False) > 80e9


def test_vae_of_one_image():
    trace = trace_vae(MODELS["SDXL"], 64)
    assert not any(product.input_gradient for product in trace.products)
    assert 3.9 < forward_flops(trace_vae(MODELS["SDXL"], 128)) / forward_flops(trace) < 4.5


def test_fake_models_take_no_memory():
    assert next(policy_on_meta(MODELS["FLUX.2 dev"]).parameters()).device == torch.device("meta")
