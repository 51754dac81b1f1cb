# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Bases in NF4 and 8 bits, and optimizers in 8 bits. bitsandbytes computes on the CPU what diffusers would have on a GPU alone."""

from ctypes import c_longlong

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.backends.cpu import ops as cpu
from diffusers import BitsAndBytesConfig, Flux2KleinPipeline, PipelineQuantizationConfig
from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer
from peft import LoraConfig

from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES
from tests.fixtures.trainers import lora_of, make_focus_trainer, make_trainer


SETTINGS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "int8": {"load_in_8bit": True},
}
PAIRS = make_pairs(8, n_references=1)


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Lets diffusers quantize there, and bitsandbytes compute right."""
    for quantizer in (BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(quantizer, "validate_environment", lambda self, *args, **kwargs: None)
        monkeypatch.setattr(quantizer, "update_device_map", lambda self, device_map: {"": "cpu"})
    # Its kernel for AVX-512 scales wrongly where a row is no multiple of a block's 64 weights: it gets them all in one row
    kernel = cpu.lib.cdequantize_blockwise_cpu_nf4_fp32

    def in_one_row(packed, absmax, out, blocksize, m, n):
        kernel(packed, absmax, out, blocksize, c_longlong(1), c_longlong(m.value * n.value))

    monkeypatch.setattr(cpu.lib, "cdequantize_blockwise_cpu_nf4_fp32", in_one_row)


def quantized(folder, kind, **settings):
    """A trainer of a pipeline that is read from a folder, its denoiser in so many bits."""
    config = PipelineQuantizationConfig(quant_mapping={"transformer": BitsAndBytesConfig(**SETTINGS[kind])})
    return make_focus_trainer(
        folder / kind,
        pipeline=str(folder / "pipeline"),
        train_dataset=PAIRS,
        quantization_config=config,
        model_init_kwargs={"dtype": "float32"},
        **settings,
    )


def dequantized(module: torch.nn.Module) -> torch.Tensor:
    weight = module.weight
    if isinstance(module, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.data.float() * weight.SCB[:, None] / 127


def losses_and_gradient(trainer):
    """Losses of a run, and the gradient of its first batch."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch).backward()
    gradient = torch.cat(
        [p.grad.flatten() for name, p in trainer.model.named_parameters() if p.requires_grad and p.grad is not None]
    )
    trainer.model.zero_grad()
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log], gradient


@pytest.mark.parametrize(("kind", "precision"), [("nf4", 1e-4), ("int8", 5e-2)])  # int8 rounds activations, too
def test_a_quantized_base_trains_as_one_of_its_weights(tmp_path, on_the_cpu, kind, precision):
    PIPELINES["flux2_klein"]().save_pretrained(tmp_path / "pipeline")
    settings = {"beta": 1.0, "learning_rate": 1e-3}
    trainer = quantized(tmp_path, kind, **settings)
    packed = {
        name.removesuffix(".base_layer"): module
        for name, module in trainer.family.denoiser.named_modules()
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
    }
    assert packed
    pipeline = Flux2KleinPipeline.from_pretrained(tmp_path / "pipeline")
    for name, module in packed.items():
        weight = pipeline.transformer.get_submodule(name).weight
        original, weight.data = weight.data, dequantized(module)
        assert 0 < (weight - original).norm() / original.norm() < 0.2  # it was rounded, and is the same layer
    plain = make_focus_trainer(tmp_path / "plain", pipeline=pipeline, train_dataset=PAIRS, **settings)
    (losses, gradient), (expected, expected_gradient) = map(losses_and_gradient, (trainer, plain))
    assert losses == pytest.approx(expected, rel=precision)
    assert (gradient - expected_gradient).norm() < precision * expected_gradient.norm()
    assert all(not module.weight.requires_grad for module in packed.values())


def test_the_lora_of_a_quantized_base_loads_on_the_whole_one(tmp_path, on_the_cpu):
    PIPELINES["flux2_klein"]().save_pretrained(tmp_path / "pipeline")
    trainer = quantized(tmp_path, "nf4")
    trainer.train()
    trainer.save_model()
    pipeline = Flux2KleinPipeline.from_pretrained(tmp_path / "pipeline")
    pipeline.load_lora_weights(tmp_path / "nf4")
    loaded = {name: value for name, value in pipeline.transformer.named_parameters() if "lora_" in name}
    trained = lora_of(trainer)
    assert len(loaded) == len(trained) > 0
    for (_, value), (_, other) in zip(sorted(loaded.items()), sorted(trained.items()), strict=True):
        torch.testing.assert_close(value, other)


def test_adamw_in_8_bits_goes_where_that_in_32_goes(tmp_path):
    """On weights that are large enough for it: bitsandbytes leaves those of less than 4096 values in 32 bits."""
    moved = {}
    for optim in ("adamw_torch", "adamw_8bit"):
        trainer = make_trainer(
            output_dir=tmp_path / optim,
            train_dataset=PAIRS,
            optim=optim,
            learning_rate=1e-3,
            max_steps=5,
            peft_config=LoraConfig(r=256, lora_alpha=16, target_modules=["to_q"], init_lora_weights="gaussian"),
        )
        before = lora_of(trainer)
        trainer.train()
        moved[optim] = torch.cat([(value - before[name]).flatten() for name, value in lora_of(trainer).items()])
    assert {state["state1"].dtype for state in trainer.optimizer.state.values()} == {torch.uint8}
    difference = (moved["adamw_8bit"] - moved["adamw_torch"]).norm() / moved["adamw_torch"].norm()
    assert 0 < difference < 0.1
