# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
The two forward processes of image diffusion, and the draws that they need.

Tensor names carry their shape: B images, C channels, H W the denoiser's token grid. Everything here is fp32.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling


class Noised(NamedTuple):
    """
    Images at a noise level.

    Attributes:
        noisy_BCHW (`torch.Tensor` of shape `(B, C, H, W)`):
            Noisy latents.
        target_BCHW (`torch.Tensor` of shape `(B, C, H, W)`):
            What the denoiser has to predict.
        timestep_B (`torch.Tensor` of shape `(B,)`):
            Noise level as the process counts it: `sigma` in [0, 1] for rectified flow, an integer in [0, T) for DDPM.
        level_B (`torch.Tensor` of shape `(B,)`):
            Noise level in [0, 1], for maps and metrics: `sigma`, or `t / T`.
    """

    noisy_BCHW: torch.Tensor
    target_BCHW: torch.Tensor
    timestep_B: torch.Tensor
    level_B: torch.Tensor


def linear_mu(scheduler, tokens: int) -> float:
    """The `mu` of an image of that many tokens: on the line that a scheduler's configuration draws, as in FLUX.1."""
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (tokens - config.base_image_seq_len)


@dataclass(frozen=True)
class RectifiedFlow:
    """
    Rectified flow: `x_sigma = (1 - sigma) x0 + sigma eps`, target `eps - x0` (https://huggingface.co/papers/2209.03003).

    Args:
        shift (`float` or `Callable`, *optional*, defaults to `1.0`):
            Shift of the noise level towards noise, `shift u / (1 + (shift - 1) u)`
            (https://huggingface.co/papers/2403.03206, eq. 23); or what gives it for an image of so many tokens.
    """

    shift: float | Callable[[int], float] = 1.0

    @classmethod
    def from_scheduler(cls, scheduler, mu: Callable[[int], float] | None = None) -> "RectifiedFlow":
        """
        Takes the shift of a flow-matching scheduler, static or by resolution. What bends a schedule of given steps
        (`shift_terminal`, Karras sigmas and the like) is of sampling alone, and left out.

        Args:
            scheduler (`FlowMatchEulerDiscreteScheduler`):
                Scheduler of a pipeline.
            mu (`Callable`, *optional*):
                The `mu` that the pipeline gives a scheduler that shifts by resolution, by the number of the image's
                tokens. Defaults to [`linear_mu`].
        """
        config = scheduler.config
        if not config.get("use_dynamic_shifting"):
            return cls(config.get("shift", 1.0))
        mu = mu or partial(linear_mu, scheduler)
        # both kinds are `shift u / (1 + (shift - 1) u)`, written otherwise
        return cls(mu if config.get("time_shift_type") == "linear" else lambda tokens: math.exp(mu(tokens)))

    def noise(self, x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, u_B: torch.Tensor) -> Noised:
        """Noises clean latents at the quantile `u` in [0, 1] of the noise levels."""
        shift = self.shift(x_BCHW.shape[-2:].numel()) if callable(self.shift) else self.shift
        sigma_B = shift * u_B / (shift * u_B + (1 - u_B))  # so written, exactly 1 at u = 1
        return self.noise_to(x_BCHW, noise_BCHW, sigma_B)

    def noise_to(self, x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, sigma_B: torch.Tensor) -> Noised:
        """Noises clean latents to a level in [0, 1], whatever the shift."""
        sigma_B111 = sigma_B[:, None, None, None]
        noisy_BCHW = (1 - sigma_B111) * x_BCHW + sigma_B111 * noise_BCHW
        return Noised(noisy_BCHW, noise_BCHW - x_BCHW, sigma_B, sigma_B)


@dataclass
class DDPM:
    """
    Variance-preserving diffusion: `x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps` (https://huggingface.co/papers/2006.11239).

    Args:
        alphas_cumprod_T (`torch.Tensor` of shape `(T,)`):
            `abar_t` of each training timestep.
        prediction_type (`str`):
            `"epsilon"`: the target is `eps`; `"v_prediction"`: it is `sqrt(abar_t) eps - sqrt(1 - abar_t) x0`
            (https://huggingface.co/papers/2202.00512).
        timesteps_N (`torch.Tensor` of shape `(N,)`, *optional*):
            The timesteps that are drawn from, least noise first. Defaults to all.
    """

    alphas_cumprod_T: torch.Tensor
    prediction_type: str
    timesteps_N: torch.Tensor | None = None

    @classmethod
    def from_scheduler(cls, scheduler) -> "DDPM":
        """
        Takes the schedule and the prediction type of a scheduler of this kind, whichever its sampler.

        Raises:
            ValueError: If the scheduler is of another process, or its prediction type is neither `"epsilon"` nor
                `"v_prediction"`.
        """
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"The pipeline has a {type(scheduler).__name__}, which is no DDPM-type schedule. Give the pipeline the "
                "scheduler its UNet was trained with."
            )
        prediction_type = scheduler.config.get("prediction_type", "epsilon")
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"The pipeline's {type(scheduler).__name__} has prediction_type={prediction_type!r}; UNets are trained "
                "with 'epsilon' or 'v_prediction'. Give the pipeline the scheduler its UNet was trained with."
            )
        return cls(scheduler.alphas_cumprod.float(), prediction_type)

    def noise(self, x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, u_B: torch.Tensor) -> Noised:
        """Noises clean latents at the quantile `u` in [0, 1] of the timesteps."""
        if self.timesteps_N is None:
            return self.noise_to(x_BCHW, noise_BCHW, u_B)
        self.timesteps_N = self.timesteps_N.to(u_B.device)
        count = len(self.timesteps_N)
        return self._at(x_BCHW, noise_BCHW, self.timesteps_N[(u_B * count).long().clamp(max=count - 1)])

    def noise_to(self, x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, level_B: torch.Tensor) -> Noised:
        """Noises clean latents to a level in [0, 1], the share of all timesteps."""
        steps = len(self.alphas_cumprod_T)
        return self._at(x_BCHW, noise_BCHW, (level_B * steps).long().clamp(max=steps - 1))

    def _at(self, x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, timestep_B: torch.Tensor) -> Noised:
        self.alphas_cumprod_T = self.alphas_cumprod_T.to(timestep_B.device)  # copied at the first step only
        alpha_B111 = self.alphas_cumprod_T[timestep_B, None, None, None]
        signal_B111, spread_B111 = alpha_B111.sqrt(), (1 - alpha_B111).sqrt()
        noisy_BCHW = signal_B111 * x_BCHW + spread_B111 * noise_BCHW
        if self.prediction_type == "epsilon":
            target_BCHW = noise_BCHW
        else:
            target_BCHW = signal_B111 * noise_BCHW - spread_B111 * x_BCHW
        return Noised(noisy_BCHW, target_BCHW, timestep_B, timestep_B / len(self.alphas_cumprod_T))


def draw(
    seeds: Sequence[int],
    shape_CHW: Sequence[int],
    device: torch.device | str,
    weighting_scheme: str = "none",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    mode_scale: float = 1.29,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Draws one noise and one noise level per seed.

    Every seed has a generator of its own, so that what a pair is given depends neither on the batch it is in, nor on
    gradient accumulation, nor on the number of processes.

    Args:
        seeds (`Sequence[int]` of length `B`):
            One seed per pair.
        shape_CHW (`Sequence[int]`):
            Shape of one latent.
        device (`torch.device` or `str`):
            Where to draw; CPU and CUDA draw different numbers from one seed.
        weighting_scheme (`str`, *optional*, defaults to `"none"`):
            Density of the levels, by diffusers' names: `"none"` (uniform), `"logit_normal"` or `"mode"`.
        logit_mean, logit_std, mode_scale (`float`, *optional*):
            Parameters of these densities. `u` is the share of noise: a positive `logit_mean` draws noisier levels.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shapes `(B, C, H, W)` and `(B,)`: standard normal noise, and levels in
        [0, 1] to be handed to `noise` of a process.
    """
    noise, u = [], []
    for seed in seeds:
        generator = torch.Generator(device).manual_seed(seed)
        noise.append(torch.randn(*shape_CHW, device=device, generator=generator))
        u.append(
            compute_density_for_timestep_sampling(
                weighting_scheme, 1, logit_mean, logit_std, mode_scale, device=device, generator=generator
            )
        )
    return torch.stack(noise), torch.cat(u)


def noised_at(process: RectifiedFlow | DDPM, x_BCHW: torch.Tensor, seeds: Sequence[int], level: float) -> Noised:
    """
    Clean latents with the noise that [`draw`] draws, all at one level.

    Args:
        process ([`RectifiedFlow`] or [`DDPM`]):
            How noise is added.
        x_BCHW (`torch.Tensor` of shape `(2B, C, H, W)`):
            Clean latents, the chosen ones first.
        seeds (`Sequence[int]` of length `B`):
            One seed per pair.
        level (`float`):
            Noise level in [0, 1].
    """
    noise_BCHW, _ = draw(seeds, x_BCHW.shape[1:], x_BCHW.device)
    return process.noise_to(x_BCHW, torch.cat([noise_BCHW] * 2), x_BCHW.new_full((len(x_BCHW),), level))


def denoising_error(prediction_BCHW: torch.Tensor, target_BCHW: torch.Tensor) -> torch.Tensor:
    """
    Squared error of each cell, averaged over channels, in at least fp32 whatever the model's dtype.

    Returns:
        `torch.Tensor` of shape `(B, H, W)`.
    """
    dtype = torch.promote_types(prediction_BCHW.dtype, torch.float32)
    return (prediction_BCHW.to(dtype) - target_BCHW).square().mean(dim=1)
