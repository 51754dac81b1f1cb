# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import math
import random

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from trl_focus.noise import DDPM, RectifiedFlow, denoising_error, draw, noised_at


BELOW_1 = np.nextafter(np.float32(1), np.float32(0))
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def images(count):
    return torch.randn(2, count, 4, 3, 5, generator=torch.Generator().manual_seed(0)).unbind()


class TestRectifiedFlow:
    @pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
    def test_formula(self, shift):
        u = np.array([0.0, 0.2, 0.7, BELOW_1, 1.0])
        x, eps = images(5)
        noised = RectifiedFlow(shift).noise(x, eps, torch.tensor(u, dtype=torch.float32))
        sigma = shift * u / (1 + (shift - 1) * u)
        s = sigma[:, None, None, None]
        np.testing.assert_allclose(noised.level_B, sigma, rtol=1e-6)
        np.testing.assert_array_equal(noised.timestep_B, noised.level_B)
        np.testing.assert_allclose(noised.noisy_BCHW, (1 - s) * x.numpy() + s * eps.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(noised.target_BCHW, eps - x)
        assert torch.equal(noised.noisy_BCHW[0], x[0])
        assert torch.equal(noised.noisy_BCHW[-1], eps[-1])
        assert {part.dtype for part in noised} == {torch.float32}

    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_levels_are_those_of_the_scheduler(self, shift):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        process = RectifiedFlow.from_scheduler(scheduler)
        assert process.shift == shift
        x, eps = torch.zeros(2, 1000, 1, 1, 1)
        level_B = process.noise(x, eps, torch.arange(1000, 0, -1) / 1000).level_B
        np.testing.assert_allclose(level_B, scheduler.sigmas, rtol=1e-6)

    @pytest.mark.parametrize("grid", [(16, 16), (20, 40), (64, 64), (96, 64)])
    @pytest.mark.parametrize("kind", ["exponential", "linear"])
    @pytest.mark.parametrize("own_mu", [False, True])
    def test_shift_by_resolution_is_the_schedulers(self, kind, grid, own_mu):
        """`mu` as a pipeline computes it, and what its scheduler makes of it."""
        scheduler = FlowMatchEulerDiscreteScheduler(
            shift=3.0,  # not in force
            use_dynamic_shifting=True,
            time_shift_type=kind,
            base_shift=0.6,
            max_shift=1.3,
            base_image_seq_len=200,
            max_image_seq_len=5000,
        )
        tokens, u = math.prod(grid), np.linspace(1, 0.001, 50, dtype=np.float32)
        mu = 2.0 - tokens / 9000 if own_mu else calculate_shift(tokens, 200, 5000, 0.6, 1.3)
        process = RectifiedFlow.from_scheduler(scheduler, mu=(lambda n: 2.0 - n / 9000) if own_mu else None)
        x = torch.zeros(50, 1, *grid)
        scheduler.set_timesteps(sigmas=u, mu=mu)
        noised = process.noise(x, torch.ones_like(x), torch.from_numpy(u))
        np.testing.assert_allclose(noised.level_B, scheduler.sigmas[:-1], rtol=1e-4)
        np.testing.assert_allclose(noised.noisy_BCHW[:, 0, 0, 0], scheduler.sigmas[:-1], rtol=1e-4)
        assert process.noise(x[:2], x[:2], torch.tensor([0.0, 1.0])).level_B.tolist() == [0, 1]

    def test_end_of_a_sampling_schedule_is_no_part_of_training(self):
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
        x = torch.zeros(1, 1, 16, 16)
        assert RectifiedFlow.from_scheduler(scheduler).noise(x, x, torch.tensor([1e-3])).level_B < 2e-3


def abar(steps=1000):
    """`alphas_cumprod` of Stable Diffusion's schedule."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2)


class TestDDPM:
    @pytest.mark.parametrize("cls", [DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
    def test_schedule_of_any_scheduler(self, cls):
        process = DDPM.from_scheduler(cls(**SD))
        np.testing.assert_allclose(process.alphas_cumprod_T, abar(), rtol=1e-4)
        assert process.alphas_cumprod_T.dtype == torch.float32
        assert process.prediction_type == "epsilon"

    @pytest.mark.parametrize("cls", [DDPMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler])
    def test_schedule_of_a_scheduler_made_with_its_own_defaults(self, cls):
        scheduler = cls()
        process = DDPM.from_scheduler(scheduler)
        np.testing.assert_allclose(process.alphas_cumprod_T, scheduler.alphas_cumprod, rtol=1e-5)

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    def test_formula(self, prediction_type):
        process = DDPM.from_scheduler(DDIMScheduler(**SD, prediction_type=prediction_type))
        u = np.array([0.0, 0.25, 0.6, 0.9995])
        x, eps = images(4)
        noised = process.noise(x, eps, torch.tensor(u, dtype=torch.float32))
        assert noised.timestep_B.tolist() == [0, 250, 600, 999]
        a = abar()[[0, 250, 600, 999]][:, None, None, None]
        clean, noise = x.double().numpy(), eps.double().numpy()
        target = noise if prediction_type == "epsilon" else a**0.5 * noise - (1 - a) ** 0.5 * clean
        expected = a**0.5 * clean + (1 - a) ** 0.5 * noise
        np.testing.assert_allclose(noised.noisy_BCHW, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(noised.target_BCHW, target, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(noised.level_B, [0, 0.25, 0.6, 0.999], rtol=1e-6)
        assert noised.noisy_BCHW.dtype == noised.target_BCHW.dtype == noised.level_B.dtype == torch.float32

    @pytest.mark.parametrize("steps", [10, 1000])
    @pytest.mark.parametrize("u,step", [(0.0, 0), (1e-9, 0), (0.0999, None), (BELOW_1, -1), (1.0, -1)])
    def test_timestep_is_an_integer_in_range(self, steps, u, step):
        process = DDPM.from_scheduler(DDPMScheduler(num_train_timesteps=steps, **SD))
        noised = process.noise(*images(1), torch.tensor([u], dtype=torch.float32))
        expected = math.floor(u * steps) if step is None else step % steps
        assert noised.timestep_B.dtype == torch.int64
        assert noised.timestep_B.item() == expected
        assert noised.level_B.item() == pytest.approx(expected / steps)

    def test_every_timestep_has_its_share(self):
        process = DDPM.from_scheduler(DDPMScheduler(**SD))
        x, eps = torch.zeros(2, 1000, 1, 1, 1)
        noised = process.noise(x, eps, (torch.arange(1000) + 0.5) / 1000)
        assert torch.equal(noised.timestep_B, torch.arange(1000))

    def test_zero_terminal_snr(self):
        scheduler = DDIMScheduler(**SD, prediction_type="v_prediction", rescale_betas_zero_snr=True)
        x, eps = images(1)
        noised = DDPM.from_scheduler(scheduler).noise(x, eps, torch.ones(1))
        torch.testing.assert_close(noised.noisy_BCHW, eps)
        torch.testing.assert_close(noised.target_BCHW, -x)

    def test_other_prediction_types_are_refused(self):
        with pytest.raises(ValueError, match="DDPMScheduler has prediction_type='sample'"):
            DDPM.from_scheduler(DDPMScheduler(**SD, prediction_type="sample"))

    @pytest.mark.parametrize("cls", [EDMEulerScheduler, FlowMatchEulerDiscreteScheduler])
    def test_schedulers_of_other_processes_are_refused(self, cls):
        with pytest.raises(ValueError, match=cls.__name__):
            DDPM.from_scheduler(cls())


SCHEMES = ["none", "logit_normal", "mode"]
SHAPE = (4, 3, 5)


def levels(scheme, count=4000, **kwargs):
    return draw(range(count), SHAPE, "cpu", scheme, **kwargs)[1]


@pytest.mark.parametrize("scheme", SCHEMES)
class TestDraw:
    def test_a_seed_gives_the_same_wherever_it_stands(self, scheme):
        noise_BCHW, u_B = draw([5, 2**63, 7, 5], SHAPE, "cpu", scheme)
        assert noise_BCHW.shape == (4, *SHAPE)
        assert u_B.shape == (4,)
        assert noise_BCHW.dtype == u_B.dtype == torch.float32
        for seeds, place in [([7], 0), ([7, 5], 0), ([1, 2, 3, 7], 3)]:
            other_BCHW, v_B = draw(seeds, SHAPE, "cpu", scheme)
            assert torch.equal(other_BCHW[place], noise_BCHW[2])
            assert torch.equal(v_B[place], u_B[2])
        assert torch.equal(noise_BCHW[0], noise_BCHW[3])
        assert u_B[0] == u_B[3]

    def test_other_seeds_give_others(self, scheme):
        noise_BCHW, u_B = draw(range(50), SHAPE, "cpu", scheme)
        assert len(u_B.unique()) == 50
        assert len(noise_BCHW.unique()) == noise_BCHW.numel()

    def test_global_random_states_are_untouched(self, scheme):
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        draw([0, 1], SHAPE, "cpu", scheme)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
        assert random.getstate() == before[2]

    def test_global_random_states_are_unread(self, scheme):
        drawn = []
        for seed in (0, 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                drawn.append(draw([3], SHAPE, "cpu", scheme))
        assert torch.equal(drawn[0][0], drawn[1][0])
        assert torch.equal(drawn[0][1], drawn[1][1])

    def test_levels_lie_in_0_to_1(self, scheme):
        u_B = levels(scheme)
        assert 0 <= u_B.min()
        assert u_B.max() <= 1


@pytest.mark.parametrize("level", [0.0, 0.25, 0.9])
def test_a_level_that_is_asked_for_is_no_quantile(level):
    """Whatever the shift, and whichever timesteps are trained; with the noise of training."""
    x_BCHW, _ = images(4)
    noise_BCHW, _ = draw([3, 8], x_BCHW.shape[1:], "cpu", "logit_normal")
    noise_BCHW = torch.cat([noise_BCHW, noise_BCHW])
    found = noised_at(RectifiedFlow(shift=7.5), x_BCHW, [3, 8], level)
    torch.testing.assert_close(found.noisy_BCHW, (1 - level) * x_BCHW + level * noise_BCHW)
    torch.testing.assert_close(found.target_BCHW, noise_BCHW - x_BCHW)
    assert found.level_B.tolist() == found.timestep_B.tolist() == pytest.approx([level] * 4)

    process = DDPM.from_scheduler(DDPMScheduler(**SD))
    process.timesteps_N = torch.tensor([999])
    found = noised_at(process, x_BCHW, [3, 8], level)
    step = math.floor(level * 1000)
    signal = process.alphas_cumprod_T[step]
    assert found.timestep_B.tolist() == [step] * 4
    torch.testing.assert_close(found.noisy_BCHW, signal.sqrt() * x_BCHW + (1 - signal).sqrt() * noise_BCHW)


def test_noise_of_neighbouring_seeds_is_standard_normal_and_independent():
    noise_BCHW, u_B = draw(range(2000), (4, 4, 4), "cpu")
    assert noise_BCHW.mean().abs() < 0.01
    assert abs(noise_BCHW.std() - 1) < 0.01
    flat = noise_BCHW.flatten(1)
    assert abs((flat[1:] * flat[:-1]).mean()) < 0.015
    assert abs(torch.corrcoef(torch.stack([flat.mean(1), u_B]))[0, 1]) < 0.1


def test_levels_are_uniform():
    distance_B = levels("none").sort().values - (torch.arange(4000) + 0.5) / 4000
    assert distance_B.abs().max() < 1.63 / 4000**0.5  # Kolmogorov-Smirnov, 1 %


@pytest.mark.parametrize("mean,std", [(0.0, 1.0), (1.0, 0.5), (-1.0, 2.0)])
def test_levels_are_logit_normal(mean, std):
    u_B = levels("logit_normal", logit_mean=mean, logit_std=std).double()
    logit_B = (u_B / (1 - u_B)).log()
    assert abs(logit_B.mean() - mean) < 4 * std / 4000**0.5
    assert abs(logit_B.std() - std) < 4 * std / 8000**0.5


def test_positive_logit_mean_is_noisier():
    """Up to the noise in the latents, not only in the number drawn."""
    noises = []
    for mean in (-1.0, 0.0, 1.0):
        _, u_B = draw(range(500), (1, 1, 1), "cpu", "logit_normal", mean, 1.0)
        x, eps = torch.zeros(500, 1, 1, 1), torch.ones(500, 1, 1, 1)
        noises.append([p.noise(x, eps, u_B).noisy_BCHW.mean().item() for p in PROCESSES])
    assert np.all(np.diff(noises, axis=0) > 0.1)


PROCESSES = [RectifiedFlow(), DDPM.from_scheduler(DDPMScheduler(**SD))]


def test_mode_prefers_the_middle():
    spread = [levels("mode", mode_scale=scale).std().item() for scale in (0.0, 0.8, 1.29)]
    assert spread[0] == pytest.approx(12**-0.5, abs=0.01)  # uniform
    assert spread[0] > spread[1] > spread[2]


class TestDenoisingError:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    @pytest.mark.parametrize("target_dtype", [None, torch.float32])
    def test_mean_of_squares_over_channels(self, dtype, target_dtype):
        prediction, target = images(2)
        prediction, target = prediction.to(dtype), target.to(target_dtype or dtype)
        actual = denoising_error(prediction, target)
        expected = ((prediction.double() - target.double()) ** 2).sum(1) / 4
        assert actual.shape == (2, 3, 5)
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        np.testing.assert_allclose(actual, expected, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=1e-7)

    def test_fp16_does_not_overflow(self):
        prediction = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16)
        assert denoising_error(prediction, torch.zeros(1, 1, 1, 1)).item() == 90000
