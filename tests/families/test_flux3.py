# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""FLUX.3 is a modular pipeline: its family runs the pipeline's own blocks, and is held against the whole."""

import pytest
import torch
from diffusers import Flux3AutoBlocks

from tests.fixtures.families import Spy, as_pixels, assert_same, picture
from tests.fixtures.flux3 import FLUX3_PROMPT_KWARGS, tiny_flux3
from tests.fixtures.pairs import make_pairs
from tests.fixtures.trainers import lora_of, make_trainer
from trl_focus import FocusDPOTrainer
from trl_focus.callbacks import LogSamplesCallback
from trl_focus.families.flux3 import Flux3
from trl_focus.families.tap import BlockTap


REFERENCES = {"none": [], "one": [(100, 71)], "two sizes": [(64, 80), (100, 71)]}


def family_of(**kwargs):
    return Flux3(tiny_flux3(**kwargs), FLUX3_PROMPT_KWARGS)


def encoded(family, sizes, prompts):
    images = [picture(*size, seed) for seed, size in enumerate(sizes)]
    rule = family.reference_rule().among(len(images))
    latents = [
        family.encode_image(as_pixels(rule.prepare(image)).expand(len(prompts), -1, -1, -1)) for image in images
    ]
    return images, family.encode_prompt(prompts), latents


@torch.no_grad()
@pytest.mark.parametrize("width,height", [(64, 96), (112, 64)])
@pytest.mark.parametrize("references", REFERENCES)
@pytest.mark.parametrize("prompt", ["a cat", "a cat " * 20], ids=["80 tokens", "160 tokens"])
def test_calls_the_denoiser_as_the_pipeline_does(prompt, references, width, height, monkeypatch):
    family = family_of()
    spy = Spy(family, monkeypatch)
    images, conditions, latents = encoded(family, REFERENCES[references], [prompt])
    family.pipeline(
        prompt=prompt,
        width=width,
        height=height,
        num_inference_steps=2,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **({"image": images} if images else {}),
        **FLUX3_PROMPT_KWARGS,
    )
    grid = height // family.cell_size, width // family.cell_size
    theirs = [*spy.calls]
    assert len(theirs) == len(spy.steps) == 2
    for call, (handed, timestep, sample) in zip(theirs, spy.steps, strict=True):
        spy.calls.clear()
        x = sample.mT.unflatten(2, grid)
        ours = family.predict(family.denoiser, x, timestep[None] / 1000, conditions, latents)
        assert_same(spy.calls[0], call, 1e-5, "call")
        torch.testing.assert_close(ours, handed.mT.unflatten(2, grid), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("references", REFERENCES)
def test_tokens_of_each_image_are_found(references):
    """Blocks that pass on what they are given: what went in as images comes out of their tokens."""
    family = family_of()
    _, prompt, latents = encoded(family, REFERENCES[references], ["a cat", "a dog"])
    latents = [torch.randn_like(value) for value in latents]
    x = torch.randn(2, 16, 4, 7)
    for block in family.denoiser.single_transformer_blocks:
        block.forward = lambda hidden_states, encoder_hidden_states, **kwargs: (encoder_hidden_states, hidden_states)
    for blocks in family.denoiser.mode_blocks.values():
        for block in blocks:
            block.forward = lambda hidden_states, *args: hidden_states
    tap = BlockTap(family.denoiser, family.feature_blocks)
    with tap.reading(lambda tokens: tokens) as read:
        family.predict(family.denoiser, x, torch.tensor([0.2, 0.7]), prompt, latents)
    target, shown = family.image_tokens(read[0], prompt, (4, 7), [tuple(value.shape[-2:]) for value in latents])
    embed = family.denoiser.x_embedders
    torch.testing.assert_close(target, embed["image"](x.flatten(2).mT))
    for tokens, image in zip(shown, latents, strict=True):
        torch.testing.assert_close(tokens, embed["image_cond"](image.flatten(2).mT))


@torch.no_grad()
def test_prompts_of_a_batch_share_the_largest_window():
    family = family_of()
    short, long = "a cat", "a cat " * 20
    alone, longer = (family.encode_prompt([prompt])["prompt_embeds"] for prompt in (short, long))
    assert alone.shape[1:] == (80, 32) and longer.shape[1:] == (160, 32)
    both = family.encode_prompt([short, long])["prompt_embeds"]
    torch.testing.assert_close(both[1:], longer)
    tokens = family.template_tokens + len(short)
    torch.testing.assert_close(both[:1, :tokens], alone[:, :tokens])  # and more of the padding
    assert family.encode_prompt([short])["prompt_embeds"].shape[1] == 80  # as before


@pytest.mark.parametrize("resolution", [None, 256])
@pytest.mark.parametrize("count", [1, 2])
def test_reference_rule_sizes_what_it_prepares(count, resolution):
    rule = family_of().reference_rule(resolution).among(count)
    for size in [(64, 64), (100, 71), (300, 200), (1300, 1000)]:
        mask = picture(*size, 0).convert("L")
        for image in (picture(*size, 0), mask):
            prepared = rule.prepare(image)
            assert prepared.mode == image.mode
            assert prepared.size[::-1] == rule.size(*size)
            assert prepared.width % 16 == prepared.height % 16 == 0
            assert resolution is None or prepared.width * prepared.height <= 1.2 * resolution**2


def test_flow_map_is_refused():
    with pytest.raises(ValueError, match="is a flow map.*Train the one it was distilled from"):
        family_of(flow_map=True)


def test_missing_component_is_refused():
    pipeline = tiny_flux3()
    pipeline.update_components(vae=None)
    with pytest.raises(ValueError, match="The pipeline has no `vae`, and training needs it"):
        Flux3(pipeline)


def test_unknown_arguments_of_the_text_block_are_refused():
    with pytest.raises(ValueError, match="`encode_prompt_kwargs` holds 'max_len'.*is .*text_encoder_out_layers"):
        Flux3(tiny_flux3(), {"max_len": 64})


def test_trains_and_its_lora_comes_back(tmp_path):
    """From a folder, as from the Hub, with references, through a checkpoint of each block; then by the pipeline's loader."""
    blocks = Flux3AutoBlocks()
    tiny_flux3().save_pretrained(str(tmp_path / "model"), overwrite_modular_index=True)
    trainer = make_trainer(
        FocusDPOTrainer,
        tmp_path / "out",
        "flux3",
        pipeline=str(tmp_path / "model"),
        train_dataset=make_pairs(8, n_references=2),
        gradient_checkpointing=True,
        learning_rate=1e-3,
        max_steps=10,
    )
    assert "prompt_upsampler" in blocks.sub_blocks and "prompt_upsampler" not in trainer.pipeline.blocks.sub_blocks
    before = lora_of(trainer)
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in lora_of(trainer).items())
    trainer.save_model()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipe.load_components(dtype=torch.float32)" in card
    family = family_of()
    family.pipeline.load_lora_weights(tmp_path / "out")
    conditions = family.encode_prompt(["a cat"])
    arguments = torch.randn(1, 16, 4, 6), torch.tensor([0.4]), conditions, []
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.family.predict(trainer.model, *arguments)
        torch.testing.assert_close(family.predict(family.denoiser, *arguments), expected, rtol=1e-4, atol=1e-4)
        family.pipeline.unload_lora_weights()
        assert (family.predict(family.denoiser, *arguments) - expected).abs().max() > 0.01


def test_samples_are_drawn_at_the_trained_size(tmp_path):
    pairs = make_pairs(2, n_references=1)
    trainer = make_trainer(output_dir=tmp_path, family="flux3", train_dataset=pairs)
    images = LogSamplesCallback(trainer, pairs, num_inference_steps=1)._sample()
    assert [image.size for image in images] == [(64, 64)] * 2


def test_every_lora_weight_gets_a_gradient_without_references(tmp_path):
    trainer = make_trainer(output_dir=tmp_path, family="flux3", train_dataset=make_pairs(2))
    x, t = torch.randn(1, 16, 4, 6), torch.tensor([0.3])
    prompt = trainer.family.encode_prompt(["a cat"])
    trainer.family.predict(trainer.model, x, t, prompt, []).square().mean().backward()
    assert all(value.grad is not None for value in trainer.model.parameters() if value.requires_grad)


def test_compiled_blocks_predict_the_same():
    family = family_of()
    _, prompt, latents = encoded(family, REFERENCES["one"], ["a cat"])
    arguments = torch.randn(1, 16, 4, 6), torch.tensor([0.4]), prompt, latents
    with torch.no_grad():
        expected = family.predict(family.denoiser, *arguments)
        family.denoiser.compile_repeated_blocks(backend="aot_eager")
        torch.testing.assert_close(family.predict(family.denoiser, *arguments), expected, rtol=1e-5, atol=1e-5)
