# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What every family must do, held against its pipeline: the same denoiser call, the same prediction, the same way back, and
training that its own loader understands. A new family is tested by one line in `tests/fixtures/pipelines.py`.
"""

import inspect
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.hooks._helpers import TransformerBlockRegistry
from peft import LoraConfig

from tests.fixtures.families import (
    PROMPTS,
    REFERENCE_SIZES,
    Stop,
    as_pixels,
    call_pipeline,
    check_calls,
    denoiser_inputs,
    encoded,
    family_of,
    off_grid,
    picture,
)
from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import TINY
from tests.fixtures.trainers import make_trainer
from trl_focus.families import FAMILIES, family_class
from trl_focus.families.tap import BlockTap
from trl_focus.hub.lora import save_lora
from trl_focus.noise import RectifiedFlow
from trl_focus.trainer.policy import make_policy


every_family = pytest.mark.parametrize("name", TINY)
with_references = pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if tiny.references])


# ---- The denoiser's call ----


def reference_sizes(name):
    """References to call the pipeline with: as few and as many as it takes, of two sizes."""
    least, most = family_class([TINY[name].build.__annotations__["return"].__name__]).reference_counts
    most = min(2 if n is None else n for n in (most, TINY[name].most_references))
    return [REFERENCE_SIZES[:count] for count in range(least, most + 1)]


@pytest.mark.parametrize("width,height", [(64, 96), (96, 64)])
@pytest.mark.parametrize("name,sizes", [(name, sizes) for name in TINY for sizes in reference_sizes(name)])
def test_calls_the_denoiser_as_the_pipeline_does(name, sizes, width, height, monkeypatch):
    check_calls(family_of(name), name, [picture(*size, n) for n, size in enumerate(sizes)], width, height, monkeypatch)


@every_family
def test_rows_of_a_batch_do_not_mix(name):
    """Prompts of two lengths, levels and references: each row is predicted as it is alone."""
    family = family_of(name)
    prompts = ["a cat", "a dog"] if TINY[name].padding_matters else PROMPTS
    x, t, prompt, references = denoiser_inputs(family, name, prompts)
    with torch.no_grad():
        together = family.predict(family.denoiser, x, t, prompt, references)
        for row in (0, 1):
            images = [[picture(*REFERENCE_SIZES[n % 2], seed=10 * row + n) for n in range(TINY[name].references)]]
            alone = family.predict(
                family.denoiser, x[row : row + 1], t[row : row + 1], *encoded(family, [prompts[row]], images)
            )
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@with_references
def test_each_reference_and_their_order_change_the_prediction(name):
    family = family_of(name)
    x, t, _, _ = denoiser_inputs(family, name, PROMPTS[:1])
    one, other = (picture(64, 64, seed) for seed in (0, 1))
    most = family.reference_counts[1] or 2
    cases = [[one], [other]] if most == 1 else [[one], [one, other], [one, one], [other, one]]
    with torch.no_grad():
        predictions = [
            family.predict(family.denoiser, x, t, *encoded(family, PROMPTS[:1], [images])) for images in cases
        ]
    for a in range(len(cases)):
        for b in range(a):
            assert not torch.allclose(predictions[a], predictions[b], atol=1e-4)


@every_family
def test_timesteps_reach_a_bf16_model_unrounded(name):
    """What the time embedding is computed from is the same in a model of bf16 as in one of fp32, to the last bits."""
    seen = {}
    for dtype in (torch.float32, torch.bfloat16):
        family = family_of(name)
        family.denoiser.to(dtype)
        inputs = denoiser_inputs(family, name)
        seen[dtype] = []

        def record(module, args, seen=seen[dtype]):
            seen += [arg for arg in args[:1] if isinstance(arg, torch.Tensor) and arg.ndim == 1]

        for part, module in family.denoiser.named_modules():
            if part.split(".")[-1] in ("time_proj", "t_embedder"):
                module.register_forward_pre_hook(record)
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            family.predict(family.denoiser, *inputs)
    assert len(seen[torch.float32]) == len(seen[torch.bfloat16]) > 0
    for exact, ours in zip(*seen.values(), strict=True):
        assert ours.dtype != torch.bfloat16
        torch.testing.assert_close(ours, exact, rtol=1e-6, atol=0, check_dtype=False)
    assert any(not torch.equal(exact, exact.bfloat16().to(exact.dtype)) for exact in seen[torch.float32])


# ---- Latents and noise ----


@every_family
def test_decoding_encoded_latents_is_what_the_pipeline_does(name, monkeypatch):
    """Clean latents of ours, handed to the pipeline's own last step, are decoded from what the VAE made of the image."""
    family = family_of(name)
    vae, pixels = family.pipeline.vae, as_pixels(picture(96, 64, 0))
    given, encodings, decoded = [], [], []
    encode, decode = vae.encode, vae.decode

    def record_encode(image, *args, **kwargs):
        output = encode(image, *args, **kwargs)
        given.append(image)
        encodings.append(output.latent_dist.mode())
        return output

    def record_decode(latents, *args, **kwargs):
        decoded.append(latents)
        return decode(latents, *args, **kwargs)

    monkeypatch.setattr(vae, "encode", record_encode)
    with torch.no_grad():
        x = family.encode_image(pixels)
    grid = 64 // family.cell_size, 96 // family.cell_size
    assert x.shape[-2:] == grid
    (image,), (expected,) = given, encodings
    image = image.squeeze(2) if image.ndim == 5 else image
    assert torch.equal(image[:, :3], pixels) and (image[:, 3:] == 1).all()  # some have an alpha channel: all opaque

    def clean(prediction, timestep, sample, **kwargs):
        return (off_grid(x, sample),)

    monkeypatch.setattr(family.pipeline.scheduler, "step", clean)
    monkeypatch.setattr(vae, "decode", record_decode)
    sizes = [REFERENCE_SIZES[0]] * family.reference_counts[0]
    images = [picture(*size, 0) for size in sizes]
    call_pipeline(family, name, images, steps=1, output_type="np")
    torch.testing.assert_close(decoded[0], expected, rtol=1e-4, atol=1e-4)


def pipeline_shift(family, name, monkeypatch):
    """The `mu` that the pipeline gives its scheduler for an image of 96x64 pixels, if any."""
    given = []

    def stop(*args, **kwargs):
        given.append(kwargs.get("mu"))
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        # the pipelines look whether it takes `sigmas`
        stop.__signature__ = inspect.signature(family.pipeline.scheduler.set_timesteps)
        patch.setattr(family.pipeline.scheduler, "set_timesteps", stop)
        sizes = [REFERENCE_SIZES[0]] * family.reference_counts[0]
        call_pipeline(family, name, [picture(*size, 0) for size in sizes], steps=None)
    return given[0]


@pytest.mark.parametrize("dynamic", [False, True])
@every_family
def test_target_leads_back_to_the_image(name, dynamic, monkeypatch):
    """
    A step of the pipeline's scheduler to noise level 0 with the exact target gives the clean latents: a wrong sign would
    not. Levels are shifted as the pipeline shifts those of an image of that size.
    """
    if dynamic and not TINY[name].dynamic_shift:
        pytest.skip("this pipeline can't be given a scheduler that shifts by resolution")
    family = family_of(name)
    scheduler = family.pipeline.scheduler
    x = torch.randn(1, *denoiser_inputs(family, name, PROMPTS[:1])[0].shape[1:])
    noise, u = torch.randn_like(x), torch.tensor([0.93, 0.4, 0.05])
    if isinstance(family.process, RectifiedFlow):
        line = {"base_shift": 0.7, "max_shift": 1.4, "base_image_seq_len": 16, "max_image_seq_len": 100}
        scheduler.register_to_config(use_dynamic_shifting=dynamic, **line)
        scheduler.set_shift(3.0), scheduler.register_to_config(shift=3.0)
        family = type(family)(family.pipeline, TINY[name].prompt_kwargs)
        mu = pipeline_shift(family, name, monkeypatch)
        assert mu is not None or not dynamic
        scheduler.set_timesteps(sigmas=u.numpy(), mu=mu)
        levels = scheduler.sigmas[:-1]
        assert (levels > u + 0.01).all()
    else:
        scheduler = DDIMScheduler.from_config(scheduler.config, set_alpha_to_one=True, clip_sample=False)
        scheduler.set_timesteps(1)  # so that the step before any timestep is at noise level 0
        levels = (u * 1000).long() / 1000
    noised = family.process.noise(x.expand(3, -1, -1, -1), noise.expand(3, -1, -1, -1), u)
    torch.testing.assert_close(noised.level_B, levels)
    for i in range(3):
        if isinstance(family.process, RectifiedFlow):
            scheduler.set_timesteps(sigmas=u[i : i + 1].numpy(), mu=mu)
        t = scheduler.timesteps[0] if isinstance(family.process, RectifiedFlow) else noised.timestep_B[i]
        step = scheduler.step(noised.target_BCHW[i : i + 1], t, noised.noisy_BCHW[i : i + 1])
        torch.testing.assert_close(step.prev_sample, x, rtol=1e-3, atol=1e-3)


# ---- References ----


@every_family
def test_reference_rule_goes_with_the_counts(name):
    family = family_of(name)
    assert (family.reference_rule() is None) == (family.reference_counts[1] == 0)
    assert bool(family.feature_blocks) <= (family.reference_rule() is not None)
    least, most = family.reference_counts
    assert least <= TINY[name].references <= (TINY[name].references if most is None else most)


@with_references
def test_reference_rule_sizes_what_it_prepares(name):
    family = family_of(name)
    for resolution in (None, 256):
        rule = family.reference_rule(resolution).among(TINY[name].references)
        rng = np.random.default_rng(0)
        for width, height in [*rng.integers(64, 1500, (8, 2)).tolist(), (64, 64), (1024, 1024), (1023, 1026)]:
            if max(width / height, height / width) > 4:
                continue
            prepared = rule.prepare(picture(width, height, 0))
            assert prepared.size[::-1] == rule.size(width, height)
            assert all(side % family.cell_size == 0 for side in prepared.size)
            # rounding to multiples adds up to a few percent where areas are kept rather than limited
            assert prepared.width * prepared.height <= 1.15 * (resolution or 1024) ** 2


# ---- Features ----


def pass_through(block):
    """Makes a block hand on what it is given."""
    metadata = TransformerBlockRegistry.get(type(block))
    signature = inspect.signature(block.forward)

    def forward(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        hidden = given.get(metadata.hidden_states_argument_name, next(iter(given.values())))
        text = given.get(metadata.encoder_hidden_states_argument_name)
        if text is None or metadata.return_encoder_hidden_states_index is None:
            return hidden
        return (text, hidden) if metadata.return_hidden_states_index else (hidden, text)

    block.forward = forward


@with_references
def test_tap_finds_planted_features(name):
    """Blocks hand on what they are given: a feature planted in a cell of an image comes out at that image's token."""
    family = family_of(name)
    tap = BlockTap(family.denoiser, family.feature_blocks)
    registered = tuple(TransformerBlockRegistry._registry)
    for module in [module for module in family.denoiser.modules() if isinstance(module, registered)]:
        pass_through(module)
    x, t, prompt, references = denoiser_inputs(family, name, PROMPTS[:1])
    grids = [tuple(image.shape[-2:]) for image in (x, *references)]

    def hidden(images):
        with tap.reading(lambda hidden: hidden) as read, torch.no_grad():
            family.predict(family.denoiser, images[0], t, prompt, images[1:])
        assert len(read) == len(family.feature_blocks) == 1
        return read[0][0]

    plain = hidden([x, *references])
    numbered_BSD = torch.arange(len(plain))[None, :, None]
    target, shown = family.image_tokens(numbered_BSD, prompt, grids[0], grids[1:])
    assert len(shown) == len(references)
    for number, tokens_BSD in enumerate([target, *shown]):
        images = [image.clone() for image in (x, *references)]
        images[number][:, :, 1, 2] += 1
        (changed,) = ((hidden(images) - plain).abs().sum(-1).nonzero().flatten().tolist(),)
        assert changed == [tokens_BSD[0, grids[number][1] + 2]]
        assert tokens_BSD.shape[1] == math.prod(grids[number])


# ---- LoRA and training ----


def policy_of(family, **kwargs):
    """A policy whose LoRA is as if trained, on the family's own targets."""
    config = LoraConfig(r=4, lora_alpha=12, target_modules=family.lora_target_modules, **kwargs)
    policy, _ = make_policy(family.pipeline, family.denoiser, config, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


@every_family
def test_default_lora_targets_are_there(name):
    family = family_of(name)
    policy = policy_of(family)
    adapted = [part for part, _ in policy.named_modules() if part.endswith(".lora_A")]
    targets = family.lora_target_modules
    for target in [] if isinstance(targets, str) else targets:
        assert any(part.removesuffix(".lora_A").endswith(f".{target}") for part in adapted), target
    # with as few references as may be: what runs for more of them alone would have no gradient in some batches
    images = [[picture(*REFERENCE_SIZES[0], n) for n in range(family.reference_counts[0])]]
    x, t, _, _ = denoiser_inputs(family, name, PROMPTS[:1])
    family.predict(policy, x, t, *encoded(family, PROMPTS[:1], images)).square().mean().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)
    blocks = set(getattr(family.denoiser, "_repeated_blocks", None) or ["JointTransformerBlock"])
    for part, module in policy.named_modules():
        if type(module).__name__ in blocks and part.split(".")[-2] not in TINY[name].reference_blocks:
            assert any(one.startswith(f"{part}.") for one in adapted), f"{part} has no LoRA"


@every_family
def test_pipeline_loads_what_was_trained(name, tmp_path):
    family = family_of(name)
    inputs = denoiser_inputs(family, name)
    with torch.no_grad():
        base = family.predict(family.denoiser, *inputs)
        policy = policy_of(family).eval()
        expected = family.predict(policy, *inputs)
        save_lora(family.pipeline, family.denoiser_name, policy, tmp_path)
        fresh = family_of(name)
        fresh.pipeline.load_lora_weights(tmp_path)
        torch.testing.assert_close(fresh.predict(fresh.denoiser, *inputs), expected, rtol=1e-4, atol=1e-4)
    assert (expected - base).abs().max() > 0.02


def loss_and_gradient(family, policy, inputs):
    policy.zero_grad()
    loss = family.predict(policy, *inputs).square().mean()
    loss.backward()
    return loss.detach(), {part: p.grad.clone() for part, p in policy.named_parameters() if p.requires_grad}


def assert_same_training(one, other, exact=False):
    (loss, gradient), (other_loss, other_gradient) = one, other
    tolerance = 0 if exact else 1e-5
    torch.testing.assert_close(loss, other_loss, rtol=tolerance, atol=0)
    scale = max(g.abs().max() for g in gradient.values()).item()
    assert scale > 0
    for part, expected in gradient.items():
        torch.testing.assert_close(other_gradient[part], expected, rtol=0, atol=tolerance * scale)


@every_family
def test_gradient_checkpointing_changes_nothing(name):
    family = family_of(name)
    inputs = denoiser_inputs(family, name)
    policy = policy_of(family).train()
    plain = loss_and_gradient(family, policy, inputs)
    policy.activation_checkpointing_enable()
    calls = []
    checkpoint = torch.utils.checkpoint.checkpoint
    torch.utils.checkpoint.checkpoint = lambda *args, **kwargs: calls.append(args[0]) or checkpoint(*args, **kwargs)
    try:
        assert_same_training(plain, loss_and_gradient(family, policy, inputs), exact=True)
    finally:
        torch.utils.checkpoint.checkpoint = checkpoint
    assert calls


@every_family
def test_compiled(name):
    """Block by block where diffusers knows the model's repeated blocks, else as a whole."""
    family = family_of(name)
    inputs = denoiser_inputs(family, name)
    policy = policy_of(family).train()
    plain = loss_and_gradient(family, policy, inputs)
    torch._dynamo.reset()
    if getattr(family.denoiser, "_repeated_blocks", None):
        family.denoiser.compile_repeated_blocks(backend="eager")
    else:
        family.denoiser.compile(backend="eager")
    assert_same_training(plain, loss_and_gradient(family, policy, inputs))


@every_family
def test_ten_steps_raise_the_margin(name, tmp_path):
    """One pair, at one noise and level: the policy comes to prefer the chosen image."""
    data = make_pairs(1, n_references=TINY[name].references)
    trainer = make_trainer(output_dir=tmp_path, family=name, train_dataset=data, max_steps=10, learning_rate=3e-3)
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: {**collate(rows), "seed": [0] * len(rows)}
    trainer.train()
    margins = [logs["rewards/margins"] for logs in trainer.state.log_history if "loss" in logs]
    assert margins[0] == 0 and min(margins[7:]) > 1


# ---- The registry ----


def test_every_family_of_the_registry_is_tested():
    assert {*FAMILIES} == {tiny.build.__annotations__["return"].__name__ for tiny in TINY.values()}


def test_unknown_pipeline_is_refused_with_those_known():
    with pytest.raises(ValueError, match="FooPipeline.*Flux2KleinPipeline.*StableDiffusionXLPipeline"):
        family_class(["FooPipeline", "DiffusionPipeline"])


def test_derived_pipeline_is_of_its_base_family():
    assert family_class(["MyPipeline", "Flux2KleinPipeline"]) is family_class(["Flux2KleinPipeline"])
