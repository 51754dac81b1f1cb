# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What a step must not do, and what makes it faster without changing it."""

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

import trl_focus
from benchmarks.steady_memory import LiveObjects
from tests.fixtures.pairs import make_pairs
from tests.fixtures.trainers import gradients_of, make_trainer
from trl_focus import DiffusionDPOTrainer, FocusDPOTrainer
from trl_focus.trainer.computation import set_computation


PACKAGE = Path(trl_focus.__file__).parent


def losses_of(trainer) -> list[float]:
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize(
    ("trainer_class", "family"),
    [(DiffusionDPOTrainer, "sdxl"), (FocusDPOTrainer, "flux2_klein")],
    ids=["sdxl", "flux2_klein"],
)
def test_compiled_blocks_train_alike_and_are_compiled_once(tmp_path, trainer_class, family):
    settings = {"family": family, "beta": 100.0, "max_steps": 4}
    plain = losses_of(make_trainer(trainer_class, tmp_path / "plain", **settings))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trainer = make_trainer(trainer_class, tmp_path / "compiled", torch_compile_backend="aot_eager", **settings)
    graphs, step = [], trainer.training_step

    def counted(*args, **kwargs):
        loss = step(*args, **kwargs)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return loss

    trainer.training_step = counted
    assert losses_of(trainer) == pytest.approx(plain, rel=1e-4)
    assert graphs == [graphs[0]] * 4 and graphs[0] > 0
    assert not torch._dynamo.utils.counters["graph_break"]


def test_attention_backends_have_the_same_gradients(tmp_path, monkeypatch):
    plain = gradients_of(tmp_path, "flux2_klein")
    asked, backends, name = [], _AttentionBackendRegistry._backends, AttentionBackendName._NATIVE_MATH
    math = backends[name]
    monkeypatch.setitem(backends, name, lambda *args, **kwargs: asked.append(1) or math(*args, **kwargs))
    other = gradients_of(tmp_path, "flux2_klein", attention_backend="_native_math")
    torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-5)
    assert len(asked) > 1  # by more than the look whether it works
    assert _AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName.NATIVE  # for other models


@pytest.mark.parametrize(("device", "kept"), [("cuda", False), ("cpu", True)])
def test_cudnn_is_not_asked_for_attention(device, kept):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    args = SimpleNamespace(
        device=torch.device(device), offload_blocks=False, attention_backend=None, channels_last=False
    )
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        set_computation(torch.nn.Identity(), args)
        assert torch.backends.cuda.cudnn_sdp_enabled() == kept
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("sdxl", {"attention_backend": "native"}, "UNet2DConditionModel always computes attention by torch's own"),
        ("sd3", {"attention_backend": "native"}, "SD3Transformer2DModel always computes attention by torch's own"),
        (
            "flux2_klein",
            {"attention_backend": "_native_cudnn"},
            "can't train on cpu in torch.float32: .*Choose another",
        ),
        ("flux2_klein", {"attention_backend": "flex"}, "can't train on cpu in torch.float32: .*backward"),
        ("flux2_klein", {"attention_backend": "sage"}, "can't train on cpu .*Please install `sageattention"),
        ("flux2_klein", {"channels_last": True}, "Flux2Transformer2DModel has none to speak of: it is for UNets"),
    ],
    ids=str,
)
def test_what_a_model_cannot_compute_by_is_refused(tmp_path, family, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(output_dir=tmp_path, family=family, **settings)
    assert _AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName.NATIVE


def test_channels_last_has_the_same_gradients(tmp_path):
    plain = gradients_of(tmp_path, "sdxl")
    is_last = []

    def look(module, args, output):
        if isinstance(module, torch.nn.Conv2d):
            is_last.append(output.is_contiguous(memory_format=torch.channels_last))

    with torch.nn.modules.module.register_module_forward_hook(look):
        last = gradients_of(tmp_path, "sdxl", channels_last=True)
    torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-5)
    assert is_last and all(is_last)


def test_fused_optimizers_train_alike(tmp_path):
    """transformers takes the fused one where torch has it on all devices, which is from 2.8 on."""
    fused, plain = (
        losses_of(make_trainer(output_dir=tmp_path, beta=100.0, optim=optim))
        for optim in ("adamw_torch_fused", "adamw_torch")
    )
    assert fused == pytest.approx(plain, rel=1e-5)
    assert fused[0] != fused[-1]


WAITS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero")


def is_ours(path: str) -> bool:
    """Whether a file is of the package, beside what loads data, which has nothing on the device."""
    path = Path(path)
    return PACKAGE in path.parents and PACKAGE / "data" not in path.parents


@pytest.mark.parametrize("settings", [{}, {"precompute_ref_errors": 2}, {"target_gradient_factor": 0.3}], ids=str)
def test_nothing_waits_for_the_device_between_logs(tmp_path, monkeypatch, settings):
    trainer = make_trainer(FocusDPOTrainer, tmp_path, max_steps=6, logging_steps=3, beta=100.0, **settings)
    trainer.get_train_dataloader()
    waits: dict[int, Counter] = {}

    def spying(name, method):
        def call(self, *args, **kwargs):
            frame = sys._getframe(1)
            if is_ours(frame.f_code.co_filename):
                step = trainer.state.global_step  # of the last update
                waits.setdefault(step, Counter())[f"{name} in {frame.f_code.co_name}"] += 1
            return method(self, *args, **kwargs)

        return call

    for name in WAITS:
        monkeypatch.setattr(torch.Tensor, name, spying(name, getattr(torch.Tensor, name)))
    trainer.train()
    assert {*waits} <= {3, 6}, waits  # logs are written after an update, of which the step is then the number
    assert waits[3], "the spy sees nothing"


def test_steps_leave_nothing_behind(tmp_path):
    """Epochs of two steps; `benchmarks.steady_memory` looks at what the process holds over thousands of steps."""
    alive = LiveObjects(every=8)
    make_trainer(
        FocusDPOTrainer,
        tmp_path,
        train_dataset=make_pairs(4, n_references=1),
        max_steps=16,
        beta=100.0,
        callbacks=[alive],
    ).train()
    assert alive.tensors[0] == alive.tensors[1]
    assert alive.objects[1] - alive.objects[0] <= 20  # transformers keeps each log


@pytest.mark.parametrize("family", ["flux2_klein", "sdxl"])
def test_the_loss_does_not_look_through_the_model(tmp_path, monkeypatch, family):
    trainer = make_trainer(output_dir=tmp_path, family=family)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch)  # finds the layers
    looked, named_modules = [], torch.nn.Module.named_modules
    monkeypatch.setattr(
        torch.nn.Module, "named_modules", lambda *args, **kwargs: looked.append(args) or named_modules(*args, **kwargs)
    )
    trainer.compute_loss(trainer.model, batch).backward()
    assert not looked
    [*trainer.model.modules()]
    assert looked  # as it would have been seen
