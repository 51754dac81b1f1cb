# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Z-Image takes lists of images and captions, runs time backwards and fills its sequence up: held against its pipelines."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig

from tests.fixtures.families import Spy, as_pixels, family_of, picture
from tests.fixtures.pipelines import PROMPT_KWARGS
from tests.fixtures.trainers import make_focus_trainer
from tests.hub.test_lora import loaded, shake
from trl_focus.families.tap import BlockTap
from trl_focus.families.z_image import ZImageOmni
from trl_focus.hub.lora import save_lora
from trl_focus.trainer.policy import make_policy


PROMPTS = ["a cat", "a rather long caption of a dog that takes more tokens"]  # 32 and 64 tokens, filled up
REFERENCES = {"none": [], "one": [(64, 80)], "two sizes": [(64, 80), (100, 71)]}


def assert_same(ours, theirs, name):
    if isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), name
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{name}[{number}]")
    elif isinstance(theirs, torch.Tensor):
        assert ours.shape == theirs.shape, name
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=lambda text: f"{name}: {text}")
    else:
        assert ours == theirs, name


def encoded(family, sizes, prompts=PROMPTS):
    """Prompts and references as the trainer encodes them: the same references for every prompt."""
    if sizes:
        family.pipeline.vae.to(torch.bfloat16)  # the pipeline encodes references in no other dtype
    images = [picture(*size, seed) for seed, size in enumerate(sizes)]
    rule = family.reference_rule()
    shown = [[rule.prepare_for_prompt(image) for image in images]] * len(prompts) if images else None
    pixels = [as_pixels(rule.prepare(image)).expand(len(prompts), -1, -1, -1) for image in images]
    return images, family.encode_prompt(prompts, shown), [family.encode_image(value).float() for value in pixels]


@torch.no_grad()
def predict(family, denoiser=None):
    x_BCHW = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    prompt = family.encode_prompt(PROMPTS)
    return family.predict(denoiser or family.denoiser, x_BCHW, torch.tensor([0.3, 0.8]), prompt, [])


@torch.no_grad()
@pytest.mark.parametrize("width,height", [(64, 96), (112, 64)])
@pytest.mark.parametrize(
    "name,references", [("z_image", "none"), *(("z_image_omni", references) for references in REFERENCES)]
)
def test_calls_the_denoiser_as_the_pipeline_does(name, references, width, height, monkeypatch):
    family = family_of(name)
    spy = Spy(family, monkeypatch)
    images, prompt, latents = encoded(family, REFERENCES[references])
    family.pipeline(
        prompt=[*PROMPTS],
        width=width,
        height=height,
        num_inference_steps=2,
        guidance_scale=0.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **({"image": images} if images else {}),
        **PROMPT_KWARGS[name],
    )
    theirs = [*spy.calls]
    assert len(theirs) == len(spy.steps) == 2
    for call, (handed, timestep, sample) in zip(theirs, spy.steps, strict=True):
        spy.calls.clear()
        sigma_B = timestep.expand(2) / 1000
        ours = family.predict(family.denoiser, F.pixel_unshuffle(sample, 2), sigma_B, prompt, latents)
        assert spy.calls[0].keys() == call.keys()
        for key in call:
            assert_same(spy.calls[0][key], call[key], key)
        assert ours.shape[-2:] == (height // family.cell_size, width // family.cell_size)
        torch.testing.assert_close(F.pixel_shuffle(ours, 2), handed, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("references", REFERENCES)
def test_tokens_of_each_image_are_found(references):
    """Blocks that pass on what they are given: what went in as images comes out of their tokens, row by row."""
    family = family_of("z_image_omni")
    _, prompt, latents = encoded(family, REFERENCES[references])
    latents = [torch.randn_like(value) for value in latents]  # another reference in each row
    x = torch.randn(2, 16, 4, 7)  # 28 tokens, filled up to 32
    for block in [*family.denoiser.layers, *family.denoiser.noise_refiner]:
        block.forward = lambda tokens, *args: tokens
    tap = BlockTap(family.denoiser, family.feature_blocks)
    with tap.reading(lambda tokens: tokens) as read:
        family.predict(family.denoiser, x, torch.tensor([0.2, 0.7]), prompt, latents)
    grids = [tuple(value.shape[-2:]) for value in latents]
    target, shown = family.image_tokens(read[0], prompt, (4, 7), grids)
    embed = family.denoiser.all_x_embedder["2-1"]
    for tokens, image in zip([target, *shown], [x, *latents], strict=True):
        patches = F.pixel_shuffle(image, 2).unflatten(2, (-1, 2)).unflatten(4, (-1, 2))
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (C, h, 2, w, 2) -> (h w, 2 2 C)
        torch.testing.assert_close(tokens, embed(patches))


def test_prompts_are_left_as_they_were():
    """The pipeline writes its chat template into the list it is given."""
    for name in ("z_image", "z_image_omni"):
        prompts = [*PROMPTS]
        family_of(name).encode_prompt(prompts)
        assert prompts == PROMPTS


@torch.no_grad()
@pytest.mark.parametrize("name", ["z_image", "z_image_omni"])
def test_a_prompt_does_not_depend_on_those_beside_it(name):
    family = family_of(name)
    x, t = torch.randn(1, 16, 4, 6).expand(2, -1, -1, -1), torch.tensor([0.3, 0.3])
    both = family.predict(family.denoiser, x, t, family.encode_prompt(PROMPTS), [])
    for row, caption in enumerate(PROMPTS):
        alone = family.predict(family.denoiser, x[:1], t[:1], family.encode_prompt([caption]), [])
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_blocks_before_the_text_joins_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`focus_blocks` names 'noise_refiner.0'.*Choose among layers.0, layers.1"):
        make_focus_trainer(tmp_path, family="z_image_omni", focus_blocks=["layers.1", "noise_refiner.0"])


@pytest.mark.parametrize("size", [(1300, 1000), (1024, 1024), (1023, 1026), (100, 71)])
def test_references_are_sized_as_by_the_pipeline(size, monkeypatch):
    """Without a size in the call: with one, the pipeline shrinks references of more than a megapixel to that area."""
    family = family_of("z_image_omni")
    image, seen = picture(*size, 0), {}

    class Seen(Exception):
        pass

    def siglip(images, *args, **kwargs):
        (seen["siglip"],) = images
        raise Seen

    def latents(images, batch_size, device, dtype):
        (seen["vae"],) = images
        return [[]]

    monkeypatch.setattr(family.pipeline, "prepare_siglip_embeds", siglip)
    monkeypatch.setattr(family.pipeline, "prepare_image_latents", latents)
    with pytest.raises(Seen):
        family.pipeline(image=image, prompt="a cat", guidance_scale=0.0, **PROMPT_KWARGS["z_image_omni"])
    rule = family.reference_rule()
    assert torch.equal(as_pixels(rule.prepare(image)), seen["vae"])
    assert rule.prepare_for_prompt(image).tobytes() == seen["siglip"].tobytes()
    assert rule.size(*image.size) == tuple(seen["vae"].shape[-2:])


@pytest.mark.parametrize("name", ["z_image", "z_image_omni"])
def test_lora_on_the_default_targets_comes_back(name, tmp_path):
    family = family_of(name)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=family.lora_target_modules)
    policy, _ = make_policy(family.pipeline, family.denoiser, config, config)
    shake(policy)
    parts = {key.split(".")[2] for key, value in policy.named_parameters() if value.requires_grad}
    assert parts == {"layers", "noise_refiner", "context_refiner"}
    save_lora(family.pipeline, "transformer", policy.eval(), tmp_path)
    torch.testing.assert_close(predict(loaded(name, tmp_path)), predict(family, policy), rtol=1e-5, atol=1e-5)


def test_every_lora_weight_gets_a_gradient_without_references():
    """Or processes whose batches differ in it would wait for each other."""
    family = family_of("z_image_omni")
    config = LoraConfig(r=4, target_modules=family.lora_target_modules, init_lora_weights="gaussian")
    policy, _ = make_policy(family.pipeline, family.denoiser, config, config)
    x, t = torch.randn(1, 16, 4, 6), torch.tensor([0.3])
    with torch.no_grad():
        prompt = family.encode_prompt(["a cat"])
    family.predict(policy, x, t, prompt, []).square().mean().backward()
    assert all(value.grad is not None for value in policy.parameters() if value.requires_grad)


def test_pipeline_without_siglip_is_refused():
    pipeline = family_of("z_image_omni").pipeline
    pipeline.siglip = None
    with pytest.raises(ValueError, match="The pipeline has no `siglip`, and training needs it"):
        ZImageOmni(pipeline)
