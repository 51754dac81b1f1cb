# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The tiny pipelines are what most tests stand on: they must behave like the real ones."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fixtures.families import call_pipeline
from tests.fixtures.pipelines import PIPELINES, TINY
from trl_focus.families import family_class


def generate(pipe, name, prompt="a red cat", images=None):
    pipe.set_progress_bar_config(disable=True)
    family = family_class([type(pipe).__name__])(pipe, TINY[name].prompt_kwargs)
    if images is None:  # as few references as it takes
        images = [picture(64, 80, seed) for seed in range(family.reference_counts[0])]
    made = call_pipeline(family, name, images, prompt=prompt, output_type="np").images
    assert made.shape[:3] == (1, 64, 96)
    return made[..., :3]


def picture(width, height, seed):
    """A smooth picture of random colours."""
    colours = np.random.default_rng(seed).integers(256, size=(4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height))


def difference(images, others):
    """Mean difference in standard deviations."""
    return np.abs(images - others).mean() / images.std()


def state(pipe):
    modules = {name: module for name, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", PIPELINES)
class TestTinyPipelines:
    def test_reloaded_pipeline_gives_the_same_image(self, name, tmp_path):
        pipe = PIPELINES[name]()
        image = generate(pipe, name)
        pipe.save_pretrained(str(tmp_path))
        own = {part: getattr(pipe, part) for part in ("processor", "guider") if hasattr(pipe, part)}  # not saved
        reloaded = family_class([type(pipe).__name__]).load(str(tmp_path), **own)
        # Weights read from a file lie at other offsets in memory, where some kernels round differently (by 1e-6).
        # There and back to float64 moves them without changing them.
        reloaded.to(torch.float64).to(torch.float32)
        np.testing.assert_array_equal(generate(reloaded, name), image)
        assert image.std() > 0.1

    def test_prompt_changes_the_image(self, name):
        pipe = PIPELINES[name]()
        least = 0.001 if "qwen" in name else 0.02  # Qwen's template is longer than these prompts
        assert difference(generate(pipe, name), generate(pipe, name, prompt="a blue dog")) > least

    def test_sixty_characters_are_not_cut(self, name):
        pipe = PIPELINES[name]()
        prompt = "x" * 59
        assert difference(generate(pipe, name, prompt + "a"), generate(pipe, name, prompt + "b")) > 0

    def test_same_seed_same_weights_and_random_state_untouched(self, name):
        before = torch.get_rng_state()
        first, second, other = (state(PIPELINES[name](seed=seed)) for seed in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), before)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["flux2", "flux2_klein", "qwen_image_21", "qwen_image_edit_plus"])
def test_references_of_different_sizes(name):
    pipe = PIPELINES[name]()
    first, second, third = picture(96, 64, seed=0), picture(64, 80, seed=1), picture(64, 80, seed=2)
    image = generate(pipe, name, images=[first, second])
    assert difference(image, generate(pipe, name, images=[first])) > 0.01
    assert difference(image, generate(pipe, name, images=[first, third])) > 0.005
    assert difference(image, generate(pipe, name, images=[second, first])) > 0.001


@pytest.mark.parametrize("name", ["flux2", "flux2_klein"])
def test_stored_latent_statistics_are_not_the_trivial_ones(name):
    # With mean 0 and variance 1, code that forgets to normalise the latents would pass its tests.
    bn = PIPELINES[name]().vae.bn
    assert bn.running_mean.abs().min() > 0.01
    assert (bn.running_var - 1).abs().min() > 0.1
