# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""FLUX.1 and Kontext: what the suite of all families can't ask of them, since their pipelines can't do it."""

import PIL.Image
import pytest
import torch
from diffusers.pipelines.flux import pipeline_flux_kontext

from tests.fixtures.families import Spy, as_pixels, assert_same, call_pipeline, encoded, family_of, picture
from tests.fixtures.flux import KONTEXT_SIZES, tiny_flux
from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES, PROMPT_KWARGS
from tests.fixtures.trainers import make_trainer
from trl_focus import LogSamplesCallback, sample_with_references
from trl_focus.families.flux import Flux


PROMPT = "a cat on a mat"


def settings(**kwargs):
    return {
        "width": 96,
        "height": 64,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
        **PROMPT_KWARGS["flux"],
        **kwargs,
    }


def test_uno_positions_by_hand():
    ids = family_of("flux_uno").position_ids("cpu", (2, 3), (1, 2), (2, 1)).tolist()
    target = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    # the first reference begins at (2, 3), where the target ends; the second at (2 + 1, 3 + 2)
    assert ids == target + [[0, 2, 3], [0, 2, 4]] + [[0, 3, 5], [0, 4, 5]]


def test_kontext_positions_by_hand():
    ids = family_of("kontext").position_ids("cpu", (1, 2), (2, 1), (1, 1), (1, 2)).tolist()
    assert ids == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0], [2, 0, 0], [3, 0, 0], [3, 0, 1]]


@pytest.mark.parametrize("size", [(70, 100), (100, 71), (64, 64)])
def test_kontext_takes_references_as_they_are_where_its_pipeline_does(size, monkeypatch):
    family = family_of("kontext")
    spy = Spy(family, monkeypatch)
    image = picture(*size, 0)
    call_pipeline(family, "kontext", [image], _auto_resize=False)
    monkeypatch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [])
    _, (reference,) = encoded(family, [PROMPT], [[image]])
    tokens = spy.calls[0]["hidden_states"][:, 24:]
    torch.testing.assert_close(reference.flatten(2).transpose(1, 2), tokens, rtol=0, atol=1e-5)


def test_kontext_sizes_references_as_the_pipeline_does_on_the_real_sizes(monkeypatch):
    monkeypatch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", KONTEXT_SIZES)
    rule = family_of("kontext").reference_rule()
    assert rule.size(1000, 1000) == (1024, 1024)
    assert rule.size(64, 64) == (1024, 1024)  # the pipeline enlarges, too
    assert rule.size(1600, 900) == (752, 1392)
    assert rule.size(500, 2000) == (1568, 672)
    half = family_of("kontext").reference_rule(512)
    assert half.size(1000, 1000) == (512, 512)
    assert half.size(1600, 900) == (368, 688)  # half of 752x1392, cut to multiples of 16
    assert half.prepare(PIL.Image.new("L", (1600, 900))).size == (688, 368)


def test_uno_references_keep_their_size_up_to_the_limit():
    rule = family_of("flux_uno").reference_rule()
    assert rule.size(100, 71) == (64, 96)
    assert rule.size(1024, 1024) == (512, 512)
    assert family_of("flux_uno").reference_rule(64).size(640, 160) == (32, 128)
    with pytest.raises(ValueError, match="fewer than 16 pixels"):
        rule.size(10, 70)
    with pytest.raises(ValueError, match="raise `reference_resolution`"):
        family_of("flux_uno").reference_rule(32).size(1600, 100)


@pytest.mark.parametrize("n_references", [0, 1])
def test_kontext_sampled_by_the_helper_is_what_its_pipeline_draws(n_references):
    pipeline = PIPELINES["kontext"]()
    images = [picture(70, 100, 0)][:n_references]
    expected = pipeline(prompt=PROMPT, **settings(image=images[0] if images else None, max_area=96 * 64)).images
    actual = sample_with_references(pipeline, PROMPT, images, **settings()).images
    torch.testing.assert_close(actual, expected)
    if images:
        assert not torch.allclose(actual, pipeline(prompt=PROMPT, **settings(max_area=96 * 64)).images, atol=1e-3)


@pytest.mark.parametrize("name", ["flux_uno", "kontext"])
@pytest.mark.parametrize("true_cfg", [False, True])
def test_what_the_helper_samples_is_what_training_predicts(name, true_cfg, monkeypatch):
    family = family_of(name)
    spy = Spy(family, monkeypatch)
    images = [picture(70, 100, 0), picture(64, 64, 1)]
    positions = family.reference_positions
    negative = {"negative_prompt": "a dog", "true_cfg_scale": 2.0} if true_cfg else {}
    sample_with_references(family.pipeline, PROMPT, images, positions, **settings(**negative))
    theirs, steps = [*spy.calls], [*spy.steps]
    assert len(steps) == 2 and len(theirs) == (4 if true_cfg else 2)
    with torch.no_grad():
        prompts = [family.encode_prompt([prompt]) for prompt in (PROMPT, "a dog")]
        rule = family.reference_rule()
        references = [family.encode_image(as_pixels(rule.prepare(image))) for image in images]
        for number, (prediction, timestep, sample) in enumerate(steps):
            x = sample.transpose(1, 2).unflatten(2, (4, 6))
            spy.calls.clear()
            ours, opposite = (
                family.predict(family.denoiser, x, timestep[None] / 1000, prompt, references) for prompt in prompts
            )
            calls = theirs[2 * number : 2 * number + 2] if true_cfg else theirs[number : number + 1]
            for mine, call in zip(spy.calls, calls, strict=False):
                assert_same(mine, call, 1e-5, "call")
            if true_cfg:
                ours = opposite + 2.0 * (ours - opposite)
            torch.testing.assert_close(ours.flatten(2).transpose(1, 2), prediction, rtol=1e-3, atol=1e-3)


def test_the_helper_leaves_nothing_behind_and_takes_batches():
    pipeline = tiny_flux()
    before = pipeline(prompt=PROMPT, **settings()).images
    two = settings(num_images_per_prompt=2)
    drawn = sample_with_references(pipeline, [PROMPT, "a dog"], [picture(64, 64, 0)], "diagonal", **two).images
    assert drawn.shape == (4, 24, 16)
    with pytest.raises(ZeroDivisionError):
        sample_with_references(
            pipeline, PROMPT, [picture(64, 64, 0)], "diagonal", **settings(callback_on_step_end=lambda *a: 1 / 0)
        )
    assert torch.equal(pipeline(prompt=PROMPT, **settings()).images, before)
    assert not torch.allclose(drawn[:1], before, atol=1e-3)


def test_without_opting_in_flux_takes_no_references():
    family = family_of("flux")
    assert family.reference_rule() is None
    with pytest.raises(ValueError, match="FluxPipeline takes no references.*`reference_positions`"):
        sample_with_references(family.pipeline, "a cat", [picture(64, 64, 0)])


@pytest.mark.parametrize("name", ["kontext", "flux2_klein", "sd15"])
def test_positions_are_for_flux_alone(name):
    with pytest.raises(ValueError, match=f"'diagonal'.*{type(family_of(name).pipeline).__name__}"):
        family_of(name).place_references("diagonal")


def test_schnell_is_told_no_guidance(monkeypatch):
    family = Flux(tiny_flux(guidance_embeds=False), PROMPT_KWARGS["flux"])
    spy = Spy(family, monkeypatch)
    with torch.no_grad():
        family.predict(
            family.denoiser, torch.randn(1, 16, 4, 4), torch.tensor([0.5]), family.encode_prompt(["a cat"]), []
        )
    assert "guidance" not in spy.calls[0]


def test_prompts_are_cut_where_t5_cuts_them():
    assert family_of("flux").max_prompt_tokens == 63  # 64, and one that ends the prompt
    assert Flux(tiny_flux()).max_prompt_tokens == 511


def test_samples_are_drawn_with_all_references(tmp_path, monkeypatch):
    """Kontext's own call would take two references for a batch of two."""
    trainer = make_trainer(output_dir=tmp_path, family="kontext", max_steps=1)
    spy = Spy(trainer.family, monkeypatch)
    rows = [{"prompt": "a cat", "references": [picture(64, 64, 0), picture(64, 64, 1)]}]
    LogSamplesCallback(trainer, rows, num_inference_steps=1)._sample()
    (call,) = spy.calls
    assert call["img_ids"][:, 0].tolist() == [0] * 16 + [1] * 16 + [2] * 16


def test_data_with_references_is_refused_until_flux_opts_in(tmp_path):
    pairs = make_pairs(2, n_references=1)
    with pytest.raises(ValueError, match="row 0.*takes no reference images.*`reference_positions`"):
        make_trainer(output_dir=tmp_path, family="flux", train_dataset=pairs)
    with pytest.raises(ValueError, match="'diagonal'.*StableDiffusionPipeline"):
        make_trainer(output_dir=tmp_path, family="sd15", reference_positions="diagonal")


def test_levels_of_training_do_not_stay_in_the_pipeline(monkeypatch):
    family = family_of("flux")
    seen = []
    family.denoiser.time_text_embed.time_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        family.predict(
            family.denoiser, torch.randn(1, 16, 4, 6), torch.tensor([0.25]), family.encode_prompt(["a cat"]), []
        )
    call_pipeline(family, "flux", steps=1)
    assert [value.item() for value in seen] == [250.0, 3000.0, 1000.0, 3000.0]
