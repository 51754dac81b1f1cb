# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

from tests.fixtures.families import call_pipeline, family_of
from tests.fixtures.pipelines import PIPELINES
from tests.fixtures.trainers import make_trainer
from trl_focus.families import family_class
from trl_focus.noise import draw


@pytest.mark.parametrize("name,prediction", [("sd15", "epsilon"), ("sd2_v", "v_prediction"), ("sdxl", "epsilon")])
def test_prediction_type_is_the_schedulers(name, prediction):
    assert family_of(name).process.prediction_type == prediction


def test_other_prediction_types_are_refused():
    pipeline = PIPELINES["sd15"]()
    pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type='sample'"):
        family_class(["StableDiffusionPipeline"])(pipeline)


def turbo(**kwargs):
    """A pipeline with the scheduler of SDXL-Turbo."""
    pipeline = PIPELINES["sdxl"]()
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(
        pipeline.scheduler.config, **{"timestep_spacing": "trailing", **kwargs}
    )
    return pipeline


@pytest.mark.parametrize("steps,expected", [(4, [249, 499, 749, 999]), (2, [499, 999]), (1, [999])])
def test_turbo_is_trained_at_the_timesteps_it_is_sampled_at(steps, expected, tmp_path, caplog):
    trainer = make_trainer(output_dir=tmp_path, family="sdxl", pipeline=turbo(), sampling_steps=steps)
    assert "distilled" not in caplog.text
    x = torch.zeros(2000, 1, 1, 1)
    _, u = draw(range(2000), (1, 1, 1), "cpu")
    noised = trainer.family.process.noise(x, x + 1, u)
    timesteps, counts = noised.timestep_B.unique(return_counts=True)
    assert timesteps.tolist() == expected and counts.min() > 0.8 * counts.max()
    assert torch.equal(noised.level_B, noised.timestep_B / 1000)
    signal = trainer.pipeline.scheduler.alphas_cumprod[noised.timestep_B]
    torch.testing.assert_close(noised.noisy_BCHW.flatten(), (1 - signal).sqrt())
    for u, timestep in ((0.0, expected[0]), (1.0, expected[-1])):
        assert trainer.family.process.noise(x[:1], x[:1], torch.tensor([u])).timestep_B.item() == timestep

    seen = []
    trainer.family.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    trainer.train()
    trained = {*torch.cat(seen).tolist()}
    seen.clear()
    with trainer.sampling():
        call_pipeline(trainer.family, "sdxl", steps=steps)
    assert trained <= {int(timestep) for timestep in seen} == {*expected}


def test_pipelines_that_look_distilled_are_told_of(tmp_path, caplog):
    make_trainer(output_dir=tmp_path, family="sdxl", pipeline=turbo())
    assert "set `sampling_steps` to the most steps it is sampled in (4 for SDXL-Turbo)" in caplog.text
    caplog.clear()
    # a model of v whose schedule ends in pure noise is spaced so too, and is sampled in many steps
    make_trainer(output_dir=tmp_path, family="sdxl", pipeline=turbo(prediction_type="v_prediction"))
    make_trainer(output_dir=tmp_path, family="sdxl")
    assert "distilled" not in caplog.text


def test_sampling_steps_of_other_families_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="`sampling_steps=4` is for .*SDXL-Turbo.* Leave it out for QwenImagePipeline"
    ):
        make_trainer(output_dir=tmp_path, family="qwen_image", sampling_steps=4)
