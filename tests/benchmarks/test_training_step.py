# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from dataclasses import replace

import pytest
import torch

from benchmarks.clock import Clock
from benchmarks.cost_model.models import MODELS, on_meta
from benchmarks.cost_model.operations import model_flops
from benchmarks.cost_model.trace import Attention, Product, Trace
from benchmarks.pipelines import FAMILIES, SIZES, Size, _part
from benchmarks.training_step import DEFAULT, OPTIONS, make, measure, settings_of
from tests.fixtures.pipelines import TINY
from trl_focus import FocusDPOTrainer


LEAST = Size(1 / 24, 1 / 60, resolution=64, reference=64, prompt=64)


@pytest.mark.parametrize("family", FAMILIES)
def test_cost_model_counts_what_torch_counts(family):
    found = measure(family, LEAST, [DEFAULT], rounds=1)
    assert found.predicted == found.counted > 0
    assert (
        0.8 * found.counted < found.ways[DEFAULT].flops < found.counted
    )  # the gradients of LoRA's weights are not in it


def test_so_it_does_where_a_step_needs_checkpointing_to_fit():
    plain, least = (measure("sd3", replace(LEAST, checkpointing=on), [DEFAULT], rounds=1) for on in (False, True))
    assert least.predicted == least.counted > plain.counted
    assert least.ways[DEFAULT].flops == plain.ways[DEFAULT].flops  # what is computed again does not count


@pytest.mark.parametrize(
    "family, name, same_as",
    [
        ("flux2_klein", "transformer", "FLUX.2 klein 4B"),
        ("kontext", "transformer", "FLUX.1 Kontext"),
        ("qwen_image_edit_plus", "transformer", "Qwen-Image-Edit"),
        ("sdxl", "unet", "SDXL"),
    ],
)
def test_the_real_size_is_that_of_the_model(family, name, same_as):
    def weights(build) -> dict[str, torch.Size]:
        return {name: weight.shape for name, weight in on_meta(build).named_parameters()}

    tiny, settings = getattr(TINY[family].build(), name), FAMILIES[family](SIZES["real"])[name]
    assert weights(lambda: _part(tiny, settings)) == weights(MODELS[same_as].denoiser)


def test_stable_diffusion_35_medium_has_its_weights():
    """2.24 billion, by the files on the Hub."""
    tiny, settings = TINY["sd3"].build().transformer, FAMILIES["sd3"](SIZES["real"])["transformer"]
    assert sum(weight.numel() for weight in on_meta(lambda: _part(tiny, settings)).parameters()) == 2_243_171_520


@pytest.mark.parametrize("option", [DEFAULT, "encode_once=false", "one_forward=false", "focus_map=focus"])
def test_parts_sum_to_the_steps(tmp_path, option):
    moment = 0.0

    def now():
        nonlocal moment
        moment += 1
        return moment

    clock = Clock(make("flux2_klein", LEAST, tmp_path, 3, **settings_of(option)), now)
    steps = [clock.step() for _ in range(2)]
    # a step looks once more when it begins, and once more when it ends
    assert sum(clock.seconds.values()) == sum(steps) - 2 * len(steps)
    assert sum(clock.parts().values()) == pytest.approx(1)
    expected = {"data", "encoding", "reference", "forward", "maps", "backward", "optimizer", "rest"}
    assert clock.seconds.keys() == expected


def test_a_part_is_told_apart_from_what_runs_within_it(tmp_path):
    clock = Clock(make("flux2_klein", LEAST, tmp_path, 3, precompute_ref_errors=1, one_forward=False))
    clock.step()
    clock.clear()
    clock.step()
    assert "reference" not in clock.parts()
    assert clock.running == []


def test_model_operations_count_nothing_twice():
    """A frozen layer behind one that LoRA changes, and attention, of which the keys alone lead to weights that are trained."""
    frozen = Product(5, 3, 2, 0, input_gradient=True, weight_gradient=False, trained=False, recomputed=True)
    lora = Product(5, 3, 1, 0, input_gradient=False, weight_gradient=True, trained=True, recomputed=True)
    attention = Attention(2, 5, 5, 3, gradients=(False, True, False), recomputed=True)
    layer, added, product = 2 * 5 * 3 * 2, 2 * 5 * 3, 2 * 2 * 5 * 5 * 3  # of attention's two products one
    backward = layer + 2 * product  # gradients of the scores and of the keys
    trace = Trace([frozen, lora], [attention], {}, [])
    assert model_flops(trace, reference=False) == layer + added + 2 * product + backward
    assert model_flops(trace) == 2 * (layer + 2 * product) + added + backward


@pytest.mark.parametrize("option", OPTIONS)
def test_options_are_settings(tmp_path, option):
    ((name, value),) = settings_of(option).items()
    trainer = make("flux2_klein", LEAST, tmp_path, 1, **{name: value})
    assert getattr(trainer.args, name) == value
    assert isinstance(trainer, FocusDPOTrainer) == name.startswith("focus")
    assert trainer.family.denoiser.is_gradient_checkpointing == (name == "gradient_checkpointing")


def test_several_settings_at_once():
    assert settings_of("precompute_ref_errors=1,torch_compile=true") == {
        "precompute_ref_errors": 1,
        "torch_compile": True,
    }


def test_references_have_their_size(tmp_path):
    """The tests' fixtures shrink what diffusers makes of references; here they are as large as the bench says."""
    for family in ("flux2_klein", "kontext", "qwen_image_edit_plus"):
        clock = Clock(make(family, Size(1 / 24, 1 / 60, 64, reference=96, prompt=64), tmp_path, 1))
        assert [image.shape[-2:] for image in clock.next_batch()["references"]] == [(6, 6)] * 2, family
