# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""A family is held against the pipeline itself: the same denoiser call, the same prediction, the same way back."""

import inspect

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from tests.fixtures.pipelines import PIPELINES, PROMPT_KWARGS
from trl_focus.data.collator import image_to_tensor
from trl_focus.families import family_class
from trl_focus.families.flux2 import Flux2
from trl_focus.noise import DDPM, RectifiedFlow


GUIDANCE = 3.0  # told to guidance-distilled denoisers; the others are called without classifier-free guidance


def family_of(name):
    pipeline = PIPELINES[name]()
    family = family_class([cls.__name__ for cls in type(pipeline).__mro__])
    return family(pipeline, PROMPT_KWARGS[name], GUIDANCE)


def picture(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def as_pixels(image):
    return image_to_tensor(image)[None].float() / 255 * 2 - 1


class Spy:
    """Records the calls of a denoiser, with arguments by name, and what is handed to `scheduler.step`."""

    def __init__(self, family, monkeypatch):
        self.calls, self.steps = [], []
        signature = inspect.signature(family.denoiser.forward)

        def record(module, args, kwargs):
            bound = signature.bind(*args, **kwargs).arguments
            self.calls.append({key: value for key, value in bound.items() if value is not None})

        family.denoiser.register_forward_pre_hook(record, with_kwargs=True)
        step = family.pipeline.scheduler.step

        def record_step(prediction, timestep, sample, **kwargs):
            self.steps.append((prediction, timestep, sample))
            return step(prediction, timestep, sample, **kwargs)

        monkeypatch.setattr(family.pipeline.scheduler, "step", record_step)


def on_grid(x, grid):
    """Latents as the pipeline's scheduler sees them, on the token grid."""
    return x.transpose(1, 2).unflatten(2, grid) if x.ndim == 3 else F.pixel_unshuffle(x, x.shape[-1] // grid[-1])


def assert_same_call(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        if isinstance(expected, dict):
            assert_same_call(ours[key], expected, tolerance)
        elif isinstance(expected, list):
            assert_same_call(dict(enumerate(ours[key])), dict(enumerate(expected)), tolerance)
        elif isinstance(expected, torch.Tensor):
            expected = expected.expand(ours[key].shape)  # SD hands over one timestep for the whole batch
            difference = (ours[key].to(expected.dtype) - expected).abs().max()
            assert difference <= tolerance, f"{key} differs by {difference}"
        else:
            assert ours[key] == expected, key


REFERENCES = {
    "none": [],
    "one": [(64, 80)],
    "two sizes": [(64, 80), (100, 71)],
    "larger than the limit": [(1300, 1000)],
}
CASES = [(name, "none") for name in PIPELINES] + [
    (name, references) for name in ("flux2", "flux2_klein") for references in REFERENCES if references != "none"
]


@pytest.mark.parametrize("width,height", [(64, 96), (96, 64)])
@pytest.mark.parametrize("name,references", CASES)
def test_calls_the_denoiser_as_the_pipeline_does(name, references, width, height, monkeypatch):
    family = family_of(name)
    spy = Spy(family, monkeypatch)
    images = [picture(*size, seed) for seed, size in enumerate(REFERENCES[references])]
    with_images = {"image": images} if images else {}
    guidance = {"flux2": GUIDANCE, "z_image": 0.0, "z_image_omni": 0.0}.get(name, 1.0)
    family.pipeline(
        prompt="a cat on a mat",
        width=width,
        height=height,
        num_inference_steps=2,
        guidance_scale=guidance,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **with_images,
        **PROMPT_KWARGS[name],
    )
    theirs, steps = [*spy.calls], [*spy.steps]
    assert len(theirs) == len(steps) == 2

    grid = height // family.cell_size, width // family.cell_size
    # In fp32, convolutions of a megapixel depend on the memory layout of the pixels by this much
    tolerance = 2e-3 if references == "larger than the limit" else 1e-5
    with torch.no_grad():
        prompt = family.encode_prompt(["a cat on a mat"])
        rule = family.reference_rule()
        latents = [family.encode_image(as_pixels(rule.prepare(image))) for image in images]
        for number, (call, (prediction, timestep, sample)) in enumerate(zip(theirs, steps, strict=True)):
            spy.calls.clear()
            if isinstance(family.process, RectifiedFlow):
                x = on_grid(sample, grid)
                t = timestep[None] / 1000
            else:
                x, t = sample, timestep[None].long()
                if name == "sdxl":  # Euler's samples have unit signal, DDPM's unit variance
                    sigma = family.pipeline.scheduler.sigmas[number]
                    x = sample / (sigma**2 + 1).sqrt()
            ours = family.predict(family.denoiser, x, t, prompt, latents)
            assert_same_call(spy.calls[0], call, tolerance)
            assert ours.shape == x.shape
            torch.testing.assert_close(ours, on_grid(prediction, grid), rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("name", PIPELINES)
def test_decoding_encoded_latents_is_what_the_pipeline_does(name):
    """Clean latents of ours, handed to the pipeline's own last step, give the VAE's reconstruction of the image."""
    family = family_of(name)
    pixels = as_pixels(picture(96, 64, 0))
    seen = []

    def decode(latents, *args, **kwargs):
        seen.append(latents)
        return (torch.zeros(1, 3, 64, 96),)

    with torch.no_grad():
        x = family.encode_image(pixels)
        family.pipeline.vae.decode = decode

        # a denoiser that predicts no change, and a scheduler that starts from the clean latents
        family.pipeline.scheduler.step = lambda prediction, timestep, sample, **kwargs: (sample,)
        family.pipeline.prepare_latents = lambda *args, **kwargs: (
            (family.pipeline._pack_latents(x), family.pipeline._prepare_latent_ids(x))
            if isinstance(family, Flux2)
            else F.pixel_shuffle(x, family.cell_size // family.pipeline.vae_scale_factor)
        )
        family.pipeline(
            prompt="a cat", width=96, height=64, num_inference_steps=1, guidance_scale=1.0, **PROMPT_KWARGS[name]
        )
        expected = family.pipeline.vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("u", [0.05, 0.4, 0.93])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_target_leads_back_to_the_image(u, shift):
    """A scheduler step to noise level 0 with the exact target gives the clean latents: a wrong sign would not."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    clean, noise = torch.randn(2, 1, 16, 4, 6).unbind()
    noised = RectifiedFlow.from_scheduler(scheduler).noise(clean, noise, torch.tensor([u]))
    scheduler.set_timesteps(sigmas=[u])  # applies the shift itself
    torch.testing.assert_close(scheduler.sigmas[0], noised.level_B[0])
    back = scheduler.step(noised.target_BCHW, scheduler.timesteps[0], noised.noisy_BCHW).prev_sample
    torch.testing.assert_close(back, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("u", [0.05, 0.4, 0.93])
@pytest.mark.parametrize("name,prediction", [("sd15", "epsilon"), ("sd2_v", "v_prediction"), ("sdxl", "epsilon")])
def test_ddpm_target_leads_back_to_the_image(u, name, prediction):
    process = DDPM.from_scheduler(PIPELINES[name]().scheduler)
    assert process.prediction_type == prediction
    clean, noise = torch.randn(2, 1, 4, 4, 6).unbind()
    noised = process.noise(clean, noise, torch.tensor([u]))
    assert noised.timestep_B.item() == int(u * 1000)
    scheduler = DDIMScheduler.from_config(PIPELINES[name]().scheduler.config, set_alpha_to_one=True, clip_sample=False)
    scheduler.set_timesteps(1)  # so that the step before any timestep is at noise level 0
    step = scheduler.step(noised.target_BCHW, noised.timestep_B[0], noised.noisy_BCHW)
    torch.testing.assert_close(step.prev_sample, clean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("max_side", [None, 512])
def test_reference_rule_sizes_what_it_prepares(max_side):
    rule = family_of("flux2_klein").reference_rule(max_side)
    rng = np.random.default_rng(0)
    for width, height in [*rng.integers(64, 2000, (20, 2)).tolist(), (64, 64), (1024, 1024), (1023, 1026)]:
        if max(width / height, height / width) > 8:
            continue
        prepared = rule.prepare(PIL.Image.new("RGB", (width, height)))
        assert prepared.size[::-1] == rule.size(width, height)
        assert all(side % 16 == 0 for side in prepared.size)
        assert prepared.width * prepared.height <= (max_side or 1024) ** 2
    with pytest.raises(ValueError, match="too small"):
        rule.size(63, 200)


def test_families_without_references_have_no_rule():
    assert family_of("sdxl").reference_rule() is None


def test_references_change_the_prediction():
    family = family_of("flux2_klein")
    x, t = torch.randn(1, 16, 4, 4), torch.tensor([0.5])
    with torch.no_grad():
        prompt = family.encode_prompt(["a cat"])
        one, other = (family.encode_image(as_pixels(picture(64, 64, seed))) for seed in (0, 1))
        plain, first, second, swapped = (
            family.predict(family.denoiser, x, t, prompt, references)
            for references in ([], [one, other], [one, one], [other, one])
        )
    for a, b in [(plain, first), (first, second), (first, swapped)]:
        assert not torch.allclose(a, b, atol=1e-4)


def test_unknown_pipeline_is_refused_with_those_known():
    with pytest.raises(ValueError, match="FooPipeline.*Flux2KleinPipeline.*StableDiffusionXLPipeline"):
        family_class(["FooPipeline", "DiffusionPipeline"])


def test_derived_pipeline_is_of_its_base_family():
    assert family_class(["MyPipeline", "Flux2KleinPipeline"]) is Flux2


def test_other_prediction_types_are_refused():
    pipeline = PIPELINES["sd15"]()
    pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type='sample'"):
        family_class(["StableDiffusionPipeline"])(pipeline)
