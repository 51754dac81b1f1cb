# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import pytest
import torch

from tests.fixtures.families import as_pixels, family_of, picture
from trl_focus.families.tap import BlockTap


BLOCKS = ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0", "single_transformer_blocks.1"]


def inputs(family):
    with torch.no_grad():
        prompt = family.encode_prompt(["a cat"])
        references = [family.encode_image(as_pixels(picture(*size, 0))) for size in ((64, 80), (96, 64))]
    return torch.randn(1, 16, 4, 6), torch.tensor([0.4]), prompt, references


@pytest.mark.parametrize("block", BLOCKS)
def test_ranges_hold_the_tokens_they_name(block):
    """A block that passes on what it is given: what went in as target and references comes out of the ranges."""
    family = family_of("flux2_klein")
    x, t, prompt, references = inputs(family)
    for kind in ("transformer_blocks", "single_transformer_blocks"):
        for module in getattr(family.denoiser, kind):
            double = kind == "transformer_blocks"
            module.forward = lambda hidden_states, encoder_hidden_states, *a, **k: (
                (encoder_hidden_states, hidden_states) if encoder_hidden_states is not None else hidden_states
            )
            assert double or module.forward(1, None) == 1
    tap = BlockTap(family.denoiser, [block])
    with tap.reading(lambda hidden: hidden) as read, torch.no_grad():
        family.predict(family.denoiser, x, t, prompt, references)
    (hidden,) = read
    target, ranges = family.token_ranges(hidden.shape[1], (4, 6), [(5, 4), (4, 6)])
    embed = family.denoiser.x_embedder
    for tokens, image in zip([target, *ranges], [x, *references], strict=True):
        torch.testing.assert_close(hidden[:, tokens], embed(family.pipeline._pack_latents(image)).detach())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_prediction_and_gradient_are_bit_equal_and_each_block_is_read_once(checkpointing):
    results = []
    for tapped in (False, True):
        family = family_of("flux2_klein")
        torch.manual_seed(0)
        x, t, prompt, references = inputs(family)
        family.denoiser.train()
        if checkpointing:
            family.denoiser.enable_gradient_checkpointing()
        reads = []
        if tapped:
            tap = BlockTap(family.denoiser, BLOCKS)
            with tap.reading(lambda hidden: hidden.mean()) as reads:
                prediction = family.predict(family.denoiser, x, t, prompt, references)
        else:
            prediction = family.predict(family.denoiser, x, t, prompt, references)
        prediction.square().mean().backward()
        assert len(reads) == (len(BLOCKS) if tapped else 0)
        assert not any(read.requires_grad for read in reads)
        results.append((prediction.detach(), [p.grad for p in family.denoiser.parameters()]))
    (one, gradients), (other, others) = results
    assert torch.equal(one, other)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


def test_nothing_is_read_outside():
    family = family_of("flux2_klein")
    tap = BlockTap(family.denoiser, family.feature_blocks)
    with tap.reading(lambda hidden: hidden) as read:
        pass
    with torch.no_grad():
        family.predict(family.denoiser, *inputs(family))
    assert read == []
    with pytest.raises(ZeroDivisionError), tap.reading(lambda hidden: 1 / 0):
        family.predict(family.denoiser, *inputs(family))
    family.predict(family.denoiser, *inputs(family))


def test_unknown_blocks_are_refused():
    family = family_of("flux2_klein")
    with pytest.raises(ValueError, match="transformer_blocks.9.*It has transformer_blocks.0"):
        BlockTap(family.denoiser, ["transformer_blocks.9"])
    with pytest.raises(ValueError, match="not registered"):
        BlockTap(family.denoiser, ["x_embedder"])


@pytest.mark.parametrize(
    "layers,expected",
    [
        ((2, 2), "single_transformer_blocks.0"),
        ((5, 20), "single_transformer_blocks.7"),
        ((8, 4), "transformer_blocks.6"),
    ],
)
def test_default_block_is_half_way(layers, expected):
    family = family_of("flux2_klein")
    family.denoiser.transformer_blocks = torch.nn.ModuleList([torch.nn.Identity()] * layers[0])
    family.denoiser.single_transformer_blocks = torch.nn.ModuleList([torch.nn.Identity()] * layers[1])
    assert family.feature_blocks == [expected]


def test_families_without_references_have_no_feature_blocks():
    assert family_of("sdxl").feature_blocks == []


def test_compiled_blocks_are_read_too():
    family = family_of("flux2_klein")
    tap = BlockTap(family.denoiser, BLOCKS)
    arguments = inputs(family)
    with torch.no_grad(), tap.reading(lambda hidden: hidden) as plain:
        expected = family.predict(family.denoiser, *arguments)
    family.denoiser.compile_repeated_blocks(backend="eager")
    with torch.no_grad(), tap.reading(lambda hidden: hidden) as compiled:
        prediction = family.predict(family.denoiser, *arguments)
    torch.testing.assert_close(prediction, expected)
    assert len(compiled) == len(plain) == 4
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other)
