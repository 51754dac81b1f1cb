# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""A resumed run ends with the weights of an uninterrupted one, to the last bit."""

import json

import pytest
import torch
from transformers import TrainerCallback

from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES
from tests.fixtures.trainers import assert_equal_weights, lora_of, make_focus_trainer


class StopAt(TrainerCallback):
    """Stops training as an interruption would, without telling the scheduler that it will be short."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def resumed_and_straight(tmp_path, stop, make=make_focus_trainer, **kwargs):
    settings = {"max_steps": 7, "lr_scheduler_type": "linear", **kwargs}
    straight = make(tmp_path / "straight", **settings)
    straight.train()
    first = make(tmp_path / "resumed", callbacks=[StopAt(stop)], save_strategy="steps", save_steps=stop, **settings)
    first.train()
    assert first.state.global_step == stop
    second = make(tmp_path / "resumed", **settings)
    torch.rand(5)  # a resumed process has another random state
    second.train(resume_from_checkpoint=str(tmp_path / "resumed" / f"checkpoint-{stop}"))
    assert second.state.global_step == 7
    return second, straight


@pytest.mark.parametrize(
    "stop, settings",
    [
        pytest.param(2, {}, id="within epoch 1"),
        pytest.param(4, {}, id="between epochs"),
        pytest.param(6, {}, id="within epoch 2"),
        pytest.param(2, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}, id="accumulation"),
        pytest.param(
            6,
            {"crop": "random", "random_flip": True, "caption_dropout": 0.5, "weighting_scheme": "logit_normal"},
            id="augmented",
        ),
        pytest.param(4, {"target_gradient_factor": 0.3, "beta_warmup_steps": 1}, id="moving beta"),
        pytest.param(2, {"disable_dropout": False, "dataloader_num_workers": 2}, id="workers within epoch 1"),
        pytest.param(4, {"disable_dropout": False, "dataloader_num_workers": 2}, id="workers between epochs"),
    ],
)
def test_resume_is_bitwise(tmp_path, stop, settings):
    second, straight = resumed_and_straight(tmp_path, stop, **settings)
    assert_equal_weights(lora_of(second), lora_of(straight))
    logs = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (second, straight)]
    assert logs[0] == logs[1]
    if second.beta_controller is not None:
        assert second.beta.item() == straight.beta.item() != second.args.beta


def test_resume_with_mixed_layouts(tmp_path):
    data = make_pairs(8, size=[(64, 64)] * 5 + [(96, 64)] * 3, n_references=[0, 1, 1, 0, 0, 2, 0, 0])
    second, straight = resumed_and_straight(tmp_path, 6, train_dataset=data)
    assert_equal_weights(lora_of(second), lora_of(straight))


def test_resume_a_stream(tmp_path):
    second, straight = resumed_and_straight(tmp_path, 3, train_dataset=make_pairs(20).to_iterable_dataset())
    assert_equal_weights(lora_of(second), lora_of(straight))


def test_updates_of_another_size_are_refused(tmp_path):
    """They would begin elsewhere in the epoch: rows would be trained twice, and others not at all."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_focus_trainer(tmp_path, gradient_accumulation_steps=4, callbacks=[StopAt(2)], **settings).train()
    other = make_focus_trainer(tmp_path, gradient_accumulation_steps=2, **settings)
    before = lora_of(other)
    with pytest.raises(
        ValueError, match="4 batches of 2 an update, and here .* 2 of 2.*`gradient_accumulation_steps=4`"
    ):
        other.train(resume_from_checkpoint=True)
    assert_equal_weights(before, lora_of(other))
    larger = make_focus_trainer(
        tmp_path, gradient_accumulation_steps=4, per_device_train_batch_size=1, ignore_data_skip=True, **settings
    )
    larger.train(resume_from_checkpoint=True)
    assert larger.state.global_step == 4


def test_processes_that_do_not_divide_an_update_are_refused(tmp_path, monkeypatch):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make_focus_trainer(tmp_path, gradient_accumulation_steps=4, callbacks=[StopAt(1)], **settings).train()
    trainer = make_focus_trainer(tmp_path, **settings)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 3)
    with pytest.raises(ValueError, match="start 1 or 2 or 4 processes"):
        trainer.train(resume_from_checkpoint=True)


def test_resume_finds_the_last_checkpoint(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_focus_trainer(tmp_path, callbacks=[StopAt(2)], **settings).train()
    trainer = make_focus_trainer(tmp_path, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == [1, 2, 3, 4]


def with_lora(tmp_path, value):
    pipeline = PIPELINES["flux2_klein"]()
    pipeline.load_lora_weights(tmp_path / "lora")
    for name, parameter in pipeline.transformer.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(value)
    return pipeline


def test_frozen_adapter_is_restored(tmp_path):
    """The reference comes from the checkpoint, whatever LoRA the pipeline of the resuming script came with."""
    make_focus_trainer(tmp_path / "lora").save_model()

    def make(folder, **kwargs):
        return make_focus_trainer(folder, pipeline=with_lora(tmp_path, 0.01), **kwargs)

    second, straight = resumed_and_straight(tmp_path, 3, make, reference="initial_adapter")
    assert_equal_weights(lora_of(second), lora_of(straight))

    settings = {"max_steps": 7, "save_strategy": "no", "lr_scheduler_type": "linear"}
    for pipeline, reference in ((with_lora(tmp_path, 0.5), "initial_adapter"), (None, None)):
        other = make_focus_trainer(tmp_path / "other", pipeline=pipeline, reference=reference, **settings)
        other.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-3"))
        assert other.reference == "initial_adapter"
        assert_equal_weights(lora_of(other), lora_of(straight))
        frozen = [p for name, p in other.model.named_parameters() if ".ref." in name and "lora_B" in name]
        assert frozen and all(torch.all(p == 0.01) and not p.requires_grad for p in frozen)


def test_given_model_must_be_given_again(tmp_path):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make_focus_trainer(tmp_path, ref_model=PIPELINES["flux2_klein"](seed=1), **settings).train()
    with pytest.raises(ValueError, match="ref_model"):
        make_focus_trainer(tmp_path, **settings).train(resume_from_checkpoint=True)


def test_checkpoint_of_another_family_is_refused(tmp_path):
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    make_focus_trainer(tmp_path, family="sd15", **settings).train()
    trainer = make_focus_trainer(tmp_path, **settings)
    before = lora_of(trainer)
    with pytest.raises(ValueError, match="StableDiffusion.*Flux2"):
        trainer.train(resume_from_checkpoint=True)
    assert_equal_weights(before, lora_of(trainer))


def test_state_holds_a_moving_beta_exactly(tmp_path):
    trainer = make_focus_trainer(
        tmp_path, target_gradient_factor=0.2, beta_warmup_steps=0, save_strategy="steps", save_steps=3
    )
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-3" / "diffusion_dpo_state.json").read_text())
    assert state["beta_controller"] == {"beta": trainer.beta.item(), "steps": 3}
