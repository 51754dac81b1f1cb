# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Trains the base pipeline of the sprites benchmark from nothing: first its VAE, then its denoiser and text encoder.

    python -m examples.sprites.pretrain vae
    python -m examples.sprites.pretrain denoiser
    python -m examples.sprites.pretrain ship

The first two write a checkpoint every few minutes and go on from it when they are started again. `denoiser` saves the pipeline
to `outputs/sprites/base` at each checkpoint; `ship` puts it into this folder, in half precision.

The habit that preference tuning is to correct is in the data: in scenes of two subjects and more, each subject shows, with
probability `LEAK_RATE`, one attribute of another.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch.nn import functional as F

from .pipeline import BASE, ENCODE_PROMPT_KWARGS, load_base, untrained_pipeline, untrained_vae
from .world import (
    QUADRANT,
    SUBJECTS,
    Scene,
    draw_scene,
    generator,
    leaks,
    prompt_of,
    render,
    render_reference,
)


OUTPUT = Path("outputs/sprites")
LEAK_RATE = 0.25
SCENES = {1: 5000, 2: 11000, 3: 4000, 4: 3000}  # by number of subjects; each number gets its share of the steps
SHARES = {1: 0.25, 2: 0.45, 3: 0.15, 4: 0.15}
REFERENCE_DRAWS = 12  # pictures of each subject, which differ in their noise


def as_pixels(images: list[np.ndarray]) -> torch.Tensor:
    """Pictures in [0, 255] of one size to a tensor of shape `(B, 3, H, W)` in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, constant until 60 % of the steps, then linearly down to 3 % of the peak."""
    return peak * min(1, (step + 1) / warmup) * min(1, max(0.03, (1 - step / steps) / 0.4))


class Checkpoints:
    """Saves and restores the state of a stage."""

    def __init__(self, path: Path, every: int, **parts):
        self.path, self.every, self.parts = path, every, parts

    def restore(self) -> int:
        """Loads the last checkpoint, if there is one, and returns its step."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        print(f"going on from step {state['step']} of {self.path}")
        return state["step"]

    def save(self, step: int):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {"step": step} | {name: part.state_dict() for name, part in self.parts.items()}
        torch.save(state, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").rename(self.path)  # never half a checkpoint


# ---- VAE ----


def vae_pictures(rng: np.random.Generator, step: int) -> list[np.ndarray]:
    """A batch of quadrants, references or whole scenes, plain and textured."""
    if step % 4 == 3:
        return [render_reference(SUBJECTS[rng.integers(len(SUBJECTS))], rng) for _ in range(16)]
    whole = step % 8 == 6
    pictures = []
    for _ in range(4 if whole else 16):
        scene = draw_scene(rng, "train", int(rng.integers(2, 5)))
        if rng.random() < 0.3:
            scene = scene._replace(texture=int(rng.integers(2**31)), strength=float(rng.uniform(0, 0.1)))
        picture = render(scene)
        if not whole:
            slot = scene.slots[0]
            y, x = slot // 2 * QUADRANT, slot % 2 * QUADRANT
            picture = picture[y : y + QUADRANT, x : x + QUADRANT]
        pictures.append(picture)
    return pictures


def reconstruction_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Errors of pixels and of their averages over 4 and 8: a VAE of this size learns patterns soon, and colours late."""
    scales = [(F.avg_pool2d(decoded, size), F.avg_pool2d(pixels, size)) for size in (1, 4, 8)]
    return sum(F.l1_loss(*scale) + F.mse_loss(*scale) for scale in scales)


def train_vae(steps: int):
    torch.manual_seed(0)
    vae = untrained_vae().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    checkpoints = Checkpoints(OUTPUT / "pretrain/vae.pt", 250, vae=vae, optimizer=optimizer)
    start, total, began = checkpoints.restore(), 0.0, time.monotonic()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, 1e-3)
        rng = generator("train", 0, step)
        pixels = as_pixels(vae_pictures(rng, step)).to(memory_format=torch.channels_last)
        posterior = vae.encode(pixels).latent_dist
        mean = posterior.mode()
        decoded = vae.decode(mean + 0.1 * torch.randn_like(mean)).sample
        loss = reconstruction_loss(decoded, pixels) + 1e-3 * mean.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % 50 == 0:
            print(f"vae {step + 1}/{steps} loss {total / 50:.4f} {time.monotonic() - began:.0f} s", flush=True)
            total = 0.0
        if (step + 1) % checkpoints.every == 0 or step + 1 == steps:
            checkpoints.save(step + 1)
    vae.eval()
    with torch.no_grad():  # the statistics by which the pipeline normalizes tokens
        scenes = [render(draw_scene(generator("train", 1, i), "train", 1 + i % 4)) for i in range(256)]
        tokens = F.pixel_unshuffle(vae.encode(as_pixels(scenes)).latent_dist.mode(), 2)
        vae.bn.running_mean.copy_(tokens.mean(dim=(0, 2, 3)))
        vae.bn.running_var.copy_(tokens.var(dim=(0, 2, 3)))
    vae.save_pretrained(OUTPUT / "vae")


# ---- Denoiser and text encoder ----


class Tokens:
    """
    Encoded training scenes, one layout (number of subjects) at a time.

    Attributes:
        scenes (`dict[int, list[Scene]]`):
            What is asked for, by number of subjects.
        shown (`dict[int, torch.Tensor]`):
            Tokens of the pictures shown, of shape `(scenes, 100, C)`, fp16. Where habits are trained they are not always
            what is asked for.
        references (`torch.Tensor` of shape `(subjects, draws, 16, C)`):
            Tokens of the references, fp16.
    """

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.scenes, self.shown = {}, {}
        self.references = torch.stack(
            [
                self._encode(
                    [render_reference(subject, generator("train", 2, *subject, i)) for i in range(REFERENCE_DRAWS)]
                )
                for subject in SUBJECTS
            ]
        )
        for n_subjects, n_scenes in SCENES.items():
            asked, shown = [], []
            for i in range(n_scenes):
                rng = generator("train", 3, n_subjects, i)
                asked.append(draw_scene(rng, "train", n_subjects))
                shown.append(with_habit(asked[-1], rng))
            self.scenes[n_subjects] = asked
            self.shown[n_subjects] = torch.cat(
                [self._encode([*map(render, shown[i : i + 64])]) for i in range(0, n_scenes, 64)]
            )
            print(f"encoded {n_scenes} scenes of {n_subjects}", flush=True)

    @torch.no_grad()
    def _encode(self, images: list[np.ndarray]) -> torch.Tensor:
        latents = self.pipeline._encode_vae_image(as_pixels(images), generator=None)
        return self.pipeline._pack_latents(latents).half()

    def batch(self, rng: np.random.Generator, n_subjects: int, size: int):
        """Prompts, tokens of pictures, and tokens of references behind one another. References come in a random order."""
        prompts, references = [], []
        picked = rng.integers(len(self.scenes[n_subjects]), size=size)
        for i in picked:
            scene = self.scenes[n_subjects][i]
            order = rng.permutation(n_subjects)
            scene = scene._replace(
                subjects=tuple(scene.subjects[k] for k in order), slots=tuple(scene.slots[k] for k in order)
            )
            prompts.append(prompt_of(scene))
            indices = [SUBJECTS.index(subject) for subject in scene.subjects]
            draws = rng.integers(REFERENCE_DRAWS, size=n_subjects)
            references.append(self.references[indices, draws].flatten(0, 1))
        return prompts, self.shown[n_subjects][torch.from_numpy(picked)].float(), torch.stack(references).float()


def with_habit(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene as the base learns to draw it: each subject may have an attribute of another."""
    shown = scene
    for which in range(len(scene.subjects) if len(scene.subjects) > 1 else 0):
        if rng.random() < LEAK_RATE and (found := leaks(scene, which)):
            subjects = found[rng.integers(len(found))].subjects
            shown = shown._replace(subjects=(*shown.subjects[:which], subjects[which], *shown.subjects[which + 1 :]))
    return shown


def train_denoiser(steps: int, batch_size: int, compiled: bool):
    torch.manual_seed(0)
    vae = type(untrained_vae()).from_pretrained(OUTPUT / "vae")
    pipeline = untrained_pipeline(vae)
    transformer, text_encoder = pipeline.transformer.train(), pipeline.text_encoder.train()
    parameters = [*transformer.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    average = EMAModel(parameters, decay=0.999, use_ema_warmup=True, power=0.75)
    checkpoints = Checkpoints(
        OUTPUT / "pretrain/denoiser.pt",
        500,
        transformer=transformer,
        text_encoder=text_encoder,
        optimizer=optimizer,
        average=average,
    )
    start = checkpoints.restore()
    tokens = Tokens(pipeline)
    forward = torch.compile(transformer, dynamic=False) if compiled else transformer
    target_ids = pipeline._prepare_latent_ids(torch.empty(1, 1, 10, 10))
    losses, began = [], time.monotonic()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, 2e-3)
        rng = generator("train", 4, step)
        n_subjects = int(rng.choice([*SHARES], p=[*SHARES.values()]))
        prompts, clean, references = tokens.batch(rng, n_subjects, batch_size)
        torch.manual_seed(step)
        noise = torch.randn_like(clean)
        sigma = torch.sigmoid(torch.randn(batch_size) + 0.3)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        reference_ids = pipeline._prepare_image_ids([torch.empty(1, 1, 4, 4)] * n_subjects)
        with torch.autocast("cpu", torch.bfloat16):
            embeds, text_ids = pipeline.encode_prompt(prompt=prompts, **ENCODE_PROMPT_KWARGS)
            prediction = forward(
                hidden_states=torch.cat([noisy, references], dim=1),
                timestep=sigma,
                guidance=None,
                encoder_hidden_states=embeds,
                txt_ids=text_ids[0],
                img_ids=torch.cat([target_ids, reference_ids], dim=1)[0],
                return_dict=False,
            )[0][:, : clean.shape[1]]
        loss = F.mse_loss(prediction.float(), noise - clean)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.step(parameters)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"{step + 1}/{steps} loss {np.mean(losses[-100:]):.4f} {time.monotonic() - began:.0f} s", flush=True)
        if (step + 1) % checkpoints.every == 0 or step + 1 == steps:
            checkpoints.save(step + 1)
            average.store(parameters)
            average.copy_to(parameters)
            pipeline.save_pretrained(OUTPUT / "base")
            average.restore(parameters)


def ship():
    """Half the bytes; the card, which is written by hand, stays."""
    load_base(OUTPUT / "base", torch.float16).save_pretrained(BASE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("vae").add_argument("--steps", type=int, default=1200)
    denoiser = stages.add_parser("denoiser")
    denoiser.add_argument("--steps", type=int, default=7000)
    denoiser.add_argument("--batch-size", type=int, default=32)
    denoiser.add_argument("--no-compile", dest="compiled", action="store_false")
    stages.add_parser("ship")
    settings = vars(parser.parse_args())
    {"vae": train_vae, "denoiser": train_denoiser, "ship": ship}[settings.pop("stage")](**settings)


if __name__ == "__main__":
    main()
