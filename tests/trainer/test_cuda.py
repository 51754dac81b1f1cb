# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What only a GPU can show. The same steps as on the CPU, in half precision too, and none that waits for the device."""

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig
from peft import LoraConfig

from examples.sprites import quickstart
from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES, TINY
from tests.fixtures.trainers import gradients_of, lora_of, make_focus_trainer, make_trainer
from trl_focus import noise
from trl_focus.trainer import diffusion_dpo_trainer


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PAIRS = make_pairs(8, n_references=1)


@pytest.fixture
def same_noise(monkeypatch):
    """Noise and levels are drawn on the CPU, and products are of float32."""

    def draw(seeds, shape_CHW, device, *args):
        return tuple(drawn.to(device) for drawn in noise.draw(seeds, shape_CHW, "cpu", *args))

    monkeypatch.setattr(diffusion_dpo_trainer, "draw", draw)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def whole(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.double().cpu().flatten() for name, value in gradients.items() if name != "loss"])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("family", TINY)
def test_a_step_is_that_of_the_cpu(tmp_path, same_noise, family):
    expected = gradients_of(tmp_path, family)
    found = gradients_of(tmp_path, family, use_cpu=False, bf16=False)
    assert found["loss"].is_cuda
    torch.testing.assert_close(found["loss"].cpu(), expected["loss"], rtol=1e-4, atol=1e-5)
    assert distance(whole(found), whole(expected)) < 1e-3


@pytest.mark.parametrize("family", TINY)
def test_half_precision(tmp_path, same_noise, family):
    expected = gradients_of(tmp_path, family)
    found = gradients_of(tmp_path, family, use_cpu=False)
    assert found["loss"].dtype == torch.float32
    assert distance(whole(found), whole(expected)) < (0.3 if family == "z_image_omni" else 0.15)


# Not Qwen-Image, whose forward in diffusers itself brings indices to the device
@pytest.mark.parametrize("family", ["flux2_klein", "sdxl"])
@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True, "target_gradient_factor": 0.4}])
def test_a_step_does_not_wait_for_the_device(tmp_path, monkeypatch, family, settings):
    make = make_trainer if family == "sdxl" else make_focus_trainer
    trainer = make(output_dir=tmp_path, family=family, use_cpu=False, max_steps=4, logging_steps=4, **settings)
    training_step, steps = type(trainer).training_step, []

    def step(self, *args):
        steps.append(args)
        torch.cuda.set_sync_debug_mode("error" if len(steps) > 1 else "default")  # the first fills caches
        try:
            return training_step(self, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(type(trainer), "training_step", step)
    trainer.train()
    assert len(steps) == 4


def test_training_from_pairs_to_a_picture(tmp_path):
    trainer = make_focus_trainer(
        tmp_path, use_cpu=False, subject_gate="shown", loss_type=["sigmoid", "anchor"], loss_weights=[1.0, 0.1]
    )
    before = lora_of(trainer)
    trainer.train()
    assert all(value.is_cuda and value.isfinite().all() for value in lora_of(trainer).values())
    assert any(not torch.equal(value, before[name]) for name, value in lora_of(trainer).items())
    assert {module.device.type for module in trainer.family.encoders} == {"cpu"}  # they have nothing left to do
    trainer.save_model()
    loaded = PIPELINES["flux2_klein"]().to("cuda")
    loaded.load_lora_weights(tmp_path)

    def draw(pipeline):
        settings = {**TINY["flux2_klein"].prompt_kwargs, **TINY["flux2_klein"].call_kwargs}
        generator = torch.Generator().manual_seed(0)
        call = pipeline(prompt="a dog", height=64, width=64, num_inference_steps=2, generator=generator, **settings)
        return np.asarray(call.images[0]).astype(int)

    with trainer.sampling():
        trained = draw(trainer.pipeline)
    assert np.abs(trained - draw(loaded)).max() <= 2
    assert np.abs(trained - draw(PIPELINES["flux2_klein"]().to("cuda"))).max() > 2


@pytest.mark.parametrize("family", ["flux2_klein", "sdxl"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_offloaded_blocks(tmp_path, family, checkpointing):
    settings = {"checkpointing": checkpointing, "use_cpu": False, "bf16": False}
    plain = gradients_of(tmp_path, family, **settings)
    offloaded = gradients_of(tmp_path, family, offload_blocks=True, **settings)
    assert distance(whole(offloaded), whole(plain)) < 1e-5


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"])
def test_optimizers(tmp_path, optim):
    lora = LoraConfig(r=512, lora_alpha=512)  # large enough to be kept in 8 bits, and to be paged
    trainer = make_focus_trainer(
        tmp_path, use_cpu=False, optim=optim, max_steps=6, learning_rate=1e-4, peft_config=lora
    )
    before = lora_of(trainer)
    trainer.train()
    after = lora_of(trainer)
    kept = {state["state1"].dtype for state in trainer.optimizer.optimizer.state.values() if "state1" in state}
    assert (torch.uint8 in kept) == ("8bit" in optim)
    assert getattr(trainer.optimizer.optimizer, "is_paged", False) == ("paged" in optim)
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize(
    "settings", [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}], ids=["nf4", "int8"]
)
def test_quantized_base(tmp_path, settings):
    PIPELINES["flux2_klein"]().save_pretrained(tmp_path / "pipeline")
    trainer = make_focus_trainer(
        tmp_path / "run",
        pipeline=str(tmp_path / "pipeline"),
        quantization_config=PipelineQuantizationConfig(quant_mapping={"transformer": BitsAndBytesConfig(**settings)}),
        train_dataset=PAIRS,
        use_cpu=False,
    )
    assert any(isinstance(part, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt) for part in trainer.family.denoiser.modules())
    before = lora_of(trainer)
    trainer.train()
    after = lora_of(trainer)
    assert all(value.isfinite().all() and value.is_cuda for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_compiled_blocks(tmp_path):
    settings = {"use_cpu": False, "bf16": False}
    plain = gradients_of(tmp_path, "flux2_klein", **settings)
    compiled = gradients_of(tmp_path, "flux2_klein", torch_compile=True, **settings)
    assert distance(whole(compiled), whole(plain)) < 1e-2


def test_quickstart(monkeypatch, tmp_path):
    monkeypatch.setattr(quickstart, "OUTPUT", tmp_path)
    quickstart.main()  # ends in an error if the LoRA that is loaded back draws otherwise
    assert (tmp_path / "pytorch_lora_weights.safetensors").exists()
