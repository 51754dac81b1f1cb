# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Offloaded blocks train as others do, with the weights of one on the device at a time."""

import itertools
import weakref

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainingArguments

from benchmarks.cost_model.live import live_bytes
from tests.fixtures.families import denoiser_inputs, family_of
from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES, TINY
from tests.fixtures.trainers import assert_equal_weights, gradients_of, lora_of, make_args, make_trainer
from trl_focus import DiffusionDPOConfig, DiffusionDPOTrainer
from trl_focus.trainer import offload
from trl_focus.trainer.encoding import module_identity
from trl_focus.trainer.offload import blocks_of, offload_blocks
from trl_focus.trainer.policy import make_policy


CPU = torch.device("cpu")
OFFLOADED = [name for name in TINY if name != "sd3"]


class Device:
    """
    The CPU, taken for a device apart from the host: what is on it turns to NaN when its room is needed, and what rests on the
    host is NaN to whoever reads it there.

    Attributes:
        brought (`list`):
            Blocks, in the order in which their weights came to the device.
        peak (`int`):
            The most blocks that had weights there at a time.
    """

    def __init__(self, monkeypatch):
        self.resting, self.there, self.number = {}, {}, itertools.count()
        self.brought, self.peak = [], 0
        take, clear = offload._Block.__init__, offload._Place.clear

        def taken(block, *args):
            take(block, *args)
            for weight in block.weights:
                content, weight.data = weight.data, torch.full_like(weight, torch.nan)
                self.resting[weight.data_ptr()] = content, block

        def cleared(place):
            for weight in getattr(place, "weights", ()):
                weight.fill_(torch.nan)
            clear(place)

        monkeypatch.setattr(offload._Block, "__init__", taken)
        monkeypatch.setattr(offload._Place, "clear", cleared)
        monkeypatch.setattr(offload, "copied", self.copied)

    def copied(self, weight: torch.Tensor, device: torch.device) -> torch.Tensor:
        content, block = self.resting[weight.data_ptr()]
        copy, number = content.clone(), next(self.number)
        self.there[number] = block
        weakref.finalize(copy.untyped_storage(), self.there.pop, number)
        self.peak = max(self.peak, len({id(block) for block in self.there.values()}))
        if weight.data_ptr() == block.weights[0].data_ptr():
            self.brought.append(block)
        return copy


@pytest.fixture
def device(monkeypatch):
    return Device(monkeypatch)


def assert_same_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]):
    assert_equal_weights(one, other)
    assert sum(value.any() for value in one.values()) > 2


# How often a step brings each block: once for each pass of the reference and of the policy forward and backward, and for the
# first of two forwards, which the backward pass computes again. The last block is still there when its backward pass begins.
BROUGHT = {
    ("one forward", "live"): (3, 1),
    ("two forwards", "live"): (7, 3),
    ("one forward", "precomputed"): (2, 1),
    ("two forwards", "precomputed"): (5, 3),
}


@pytest.mark.parametrize("family", ["flux2_klein", "sdxl"])
@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "keeping"])
@pytest.mark.parametrize("way", BROUGHT, ids=", ".join)
def test_a_step(tmp_path, device, monkeypatch, family, checkpointing, way):
    forwards, reference = way
    settings = {
        "checkpointing": checkpointing,
        "one_forward": forwards == "one forward",
        "precompute_ref_errors": int(reference == "precomputed"),
        "train_dataset": make_pairs(2, n_references=TINY[family].references),
    }
    plain = gradients_of(tmp_path, family, **settings)
    step = DiffusionDPOTrainer.compute_loss

    def counted(*args):
        device.brought.clear()
        return step(*args)

    monkeypatch.setattr(DiffusionDPOTrainer, "compute_loss", counted)
    assert_same_gradients(gradients_of(tmp_path, family, offload_blocks=True, **settings), plain)
    blocks = len(set(device.brought))
    passes, still_there = BROUGHT[way]
    assert blocks == {"flux2_klein": 4, "sdxl": 8}[family]
    assert len(device.brought) == passes * blocks - still_there
    assert device.peak == 1


@pytest.mark.parametrize("reference", ["initial_adapter", "model"])
def test_references_of_their_own(tmp_path, device, reference):
    def gradients(**settings):
        own = {"ref_model": PIPELINES["sdxl"](seed=1)} if reference == "model" else {}
        pipeline = PIPELINES["sdxl"]()
        if reference == "initial_adapter":
            torch.manual_seed(0)
            pipeline.unet.add_adapter(LoraConfig(init_lora_weights=False, target_modules=["to_q"]))
        trainer = make_trainer(
            output_dir=tmp_path, family="sdxl", pipeline=pipeline, reference=reference, **own, **settings
        )
        trainer.compute_loss(trainer.model.train(), next(iter(trainer.get_train_dataloader()))).backward()
        return {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}

    assert_same_gradients(gradients(offload_blocks=True), gradients())
    assert len(set(device.brought)) == (16 if reference == "model" else 8)
    assert device.peak == 1


def policy_of(name: str, offloaded: bool):
    family = family_of(name)
    torch.manual_seed(0)
    lora = LoraConfig(init_lora_weights=False, target_modules=family.lora_target_modules)
    policy, _ = make_policy(family.pipeline, family.denoiser, lora, lora)
    inputs = denoiser_inputs(family, name)
    if offloaded:
        offload_blocks(policy, [family.denoiser], CPU)
    return family, policy, inputs


@pytest.mark.parametrize("name", OFFLOADED)
def test_every_family(device, name):
    found = []
    for offloaded in (False, True):
        family, policy, inputs = policy_of(name, offloaded)
        output = family.predict(policy, *inputs)
        output.sum().backward()
        gradients = {key: p.grad for key, p in policy.named_parameters() if p.grad is not None}
        found.append({"output": output.detach()} | gradients)
    assert_same_gradients(*found)
    assert device.peak == 1


@pytest.mark.parametrize("name", OFFLOADED)
def test_what_moves_a_model_passes_its_blocks_by(name):
    """`meta` is a device that is not the CPU, on any machine."""
    family, policy, _ = policy_of(name, offloaded=True)
    resting = {weight: weight.data_ptr() for block in blocks_of(family.denoiser) for weight in block.parameters()}
    resting = {weight: place for weight, place in resting.items() if not weight.requires_grad}
    names = [name for name, _ in policy.named_parameters()]
    policy._apply(torch.clone)  # in place, as from the CPU to CUDA
    policy.to("meta")  # by new parameters
    assert family.denoiser.device.type == "meta"  # the pipeline takes it for the one to draw on
    assert [name for name, _ in policy.named_parameters()] == names
    stayed = {name for name, weight in policy.named_parameters() if weight.device == CPU}
    assert stayed == {name for name, weight in policy.named_parameters() if weight in resting}
    assert all(weight.data_ptr() == place for weight, place in resting.items())
    assert stayed == {*policy._ddp_params_and_buffers_to_ignore}
    assert len(stayed) > 8 and not any("lora_" in name for name in stayed)


def test_weights_that_rest_are_those_of_the_model():
    """The files of the reference's errors are found by them."""
    assert module_identity(policy_of("sdxl", True)[1]) == module_identity(policy_of("sdxl", False)[1])


def test_an_error_within_a_block_leaves_all_at_rest(device):
    family, policy, inputs = policy_of("flux2_klein", offloaded=True)
    blocks = blocks_of(family.denoiser)
    resting = [weight.data_ptr() for block in blocks for weight in block.parameters()]

    def fail(*args):
        raise KeyboardInterrupt

    hook = blocks[1].attn.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        family.predict(policy, *inputs)
    hook.remove()
    assert [weight.data_ptr() for block in blocks for weight in block.parameters()] == resting
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    assert family.predict(policy, *inputs).isfinite().all()


def test_a_change_of_resting_weights_counts():
    """As by fusing a LoRA, after a step that left a block on the device."""
    found = []
    for offloaded in (True, False):
        family, policy, inputs = policy_of("flux2_klein", offloaded)
        family.predict(policy, *inputs).sum().backward()
        for block in blocks_of(family.denoiser):
            for weight in block.parameters():
                weight.data.mul_(0.5)
        found.append(family.predict(policy, *inputs))
    assert torch.equal(*found)


@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "keeping"])
def test_memory(checkpointing):
    """Beside what a plain pass holds there is a block, and checkpointing still keeps nothing of blocks but their inputs."""
    held = []
    for offloaded in (True, False):
        family, policy, inputs = policy_of("flux2_klein", offloaded)
        if checkpointing:
            policy.activation_checkpointing_enable()
        held.append(live_bytes(lambda f=family, p=policy, i=inputs: f.predict(p, *i)))
    (kept, peak), (plain_kept, plain_peak) = held
    weights = [
        sum(weight.numel() * weight.element_size() for weight in block.parameters() if not weight.requires_grad)
        for block in blocks_of(family.denoiser)
    ]
    assert kept == plain_kept + weights[-1]  # which its backward pass needs first
    assert plain_peak <= peak <= plain_peak + max(weights)


class Sliced(torch.nn.Module):
    """A block whose backward pass needs parts of a weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 4), requires_grad=False)

    def forward(self, x):
        return x @ self.weight[1:5] * self.weight[5, ::2].sum() + x @ self.weight[2:].T


def test_parts_of_a_weight(device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(Sliced(), Sliced())
    x = torch.randn(3, 4, requires_grad=True)
    (plain,) = torch.autograd.grad(model(x).square().sum(), x)
    model._repeated_blocks = ["Sliced"]
    offload_blocks(model, [model], CPU)
    (offloaded,) = torch.autograd.grad(model(x).square().sum(), x)
    assert torch.equal(plain, offloaded)
    assert device.peak == 1


def test_nothing_stays_on_the_device_where_no_backward_pass_follows(device):
    family, policy, inputs = policy_of("flux2_klein", offloaded=True)
    with torch.no_grad():
        family.predict(policy, *inputs)
    assert device.brought and not device.there


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A plain run and an offloaded one, of four steps with a checkpoint between."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {"beta": 100.0, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    runs = []
    for name, is_on in (("plain", False), ("offloaded", True)):
        trainer = make_trainer(output_dir=folder / name, offload_blocks=is_on, **settings)
        trainer.train()
        trainer.save_model()
        runs.append(trainer)
    return *runs, settings


def test_a_run_trains_and_saves_the_same_lora(trained):
    plain, offloaded, _ = trained
    assert_equal_weights(lora_of(plain), lora_of(offloaded))
    for name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors"):
        ours, theirs = (load_file(f"{trainer.args.output_dir}/{name}") for trainer in (offloaded, plain))
        assert_equal_weights(ours, theirs)


def test_a_run_resumes(trained, tmp_path):
    _, straight, settings = trained
    resumed = make_trainer(output_dir=tmp_path, offload_blocks=True, **settings)
    resumed.train(resume_from_checkpoint=f"{straight.args.output_dir}/checkpoint-2")
    assert_equal_weights(lora_of(straight), lora_of(resumed))


def drawn(trainer):
    with trainer.sampling():
        call = {
            "num_inference_steps": 2,
            "height": 64,
            "width": 64,
            "output_type": "latent",
            **TINY["flux2_klein"].prompt_kwargs,
        }
        return trainer.pipeline(prompt="a cat", generator=torch.Generator().manual_seed(0), **call).images


def test_the_policy_draws_and_the_next_trainer_has_its_blocks_back(trained, tmp_path):
    plain, offloaded, _ = trained
    assert torch.equal(drawn(plain), drawn(offloaded))
    again = make_trainer(output_dir=tmp_path, pipeline=offloaded.pipeline)
    blocks = blocks_of(again.family.denoiser)
    assert blocks and not any({"forward", "_apply"} & {*vars(block)} for block in blocks)
    assert torch.equal(drawn(plain), drawn(again))


# ---- Refusals ----


def test_a_model_without_known_blocks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`offload_blocks` is for .* none of SD3Transformer2DModel's. Leave it out"):
        make_trainer(output_dir=tmp_path, family="sd3", offload_blocks=True)


def test_quantized_weights_are_refused(tmp_path):
    pipeline = PIPELINES["sdxl"]()
    packed = torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    blocks_of(pipeline.unet)[-1].ff.net[2].weight = packed  # as NF4 is stored
    with pytest.raises(ValueError, match="`offload_blocks` .* the denoiser's are quantized. Leave out one of both"):
        make_trainer(output_dir=tmp_path, family="sdxl", pipeline=pipeline, offload_blocks=True)


def config(tmp_path, **settings):
    return make_args(DiffusionDPOConfig, tmp_path, offload_blocks=True, **settings)


def test_compiled_blocks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`offload_blocks` does not go with torch_compile, .* Leave out one of both"):
        config(tmp_path, torch_compile=True)


def test_fsdp_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # by `accelerate launch`
    with pytest.raises(ValueError, match="`offload_blocks` does not go with FSDP, .* an offload of their own"):
        config(tmp_path)


def test_deepspeed_is_refused(tmp_path, monkeypatch):
    def with_deepspeed(args):  # which need not be installed
        vars(args).update(fsdp_plugin_args=None, deepspeed_plugin=object())

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_deepspeed)
    with pytest.raises(ValueError, match="`offload_blocks` does not go with DeepSpeed, .* an offload of their own"):
        config(tmp_path)


def test_a_torch_that_does_not_tell_of_hooks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_focus.trainer.diffusion_dpo_config.torch", torch_without_hooks := type("torch", (), {}))
    torch_without_hooks._C = type("_C", (), {"_autograd": object()})
    torch_without_hooks.__version__ = "2.7.1"
    with pytest.raises(ValueError, match="`offload_blocks` needs torch 2.8 or newer, and this is 2.7.1"):
        config(tmp_path)
