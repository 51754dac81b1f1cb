# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import math

import pytest
import torch

from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES
from tests.fixtures.trainers import assert_equal_weights, lora_of, make_focus_trainer, make_trainer
from trl_focus import FocusDPOConfig, FocusDPOTrainer, FocusMapCallback


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def shaken(trainer):
    generator = torch.Generator().manual_seed(1)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.05, generator=generator)
    return trainer


@pytest.mark.parametrize("family", ["flux2_klein", "sd15"])
def test_uniform_is_diffusion_dpo_to_the_last_bit(tmp_path, family):
    settings = {"output_dir": tmp_path, "family": family, "max_steps": 20, "loss_type": ["sigmoid", "sft"]}
    plain = make_trainer(**settings)
    focus = make_focus_trainer(focus_map="uniform", **settings)
    plain.train(), focus.train()
    losses = [[logs["loss"] for logs in trainer.state.log_history if "loss" in logs] for trainer in (plain, focus)]
    assert losses[0] == losses[1] and len({*losses[0]}) == 20
    assert_equal_weights(lora_of(plain), lora_of(focus))


def test_mask_is_the_default_and_another_map_than_uniform(tmp_path):
    weights = []
    for kwargs in ({}, {"focus_map": "mask"}, {"focus_map": "uniform"}):
        trainer = make_focus_trainer(tmp_path, **kwargs)
        trainer.train()
        weights.append(lora_of(trainer))
    assert_equal_weights(*weights[:2])
    assert any(not torch.equal(value, weights[2][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("family", PIPELINES)
def test_every_family_trains_with_masks(tmp_path, family):
    trainer = make_focus_trainer(tmp_path, family=family)
    before = lora_of(trainer)
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in lora_of(trainer).items())


def test_callable_map(tmp_path):
    """A map that keeps the left half alone: what happens in the right half of an image no longer matters."""
    contexts = []

    def left_half(context):
        contexts.append(context)
        weights = torch.zeros(len(context.level_B), *context.grid)
        weights[:, :, : context.grid[1] // 2] = 1.0
        return weights

    trainer = shaken(make_focus_trainer(tmp_path, focus_map=left_half, train_dataset=make_pairs(2, masks=False)))
    batch = first_batch(trainer)
    loss = trainer.compute_loss(trainer.model, batch)
    (context,) = contexts
    assert context.grid == (4, 4) and context.level_B.shape == (4,) and context.subject_masks_BSHW is None
    assert torch.equal(context.level_B[:2], context.level_B[2:])

    errors = {}
    mean_error = trainer.cell_weights(batch, trainer._noise(trainer._encode(batch)[0], batch["seed"]))[0]
    assert mean_error.shape == (4, 4, 4) and mean_error[:, :, 2:].sum() == 0
    trainer._own_map = lambda context: torch.ones(len(context.level_B), *context.grid)
    errors["all"] = trainer.compute_loss(trainer.model, batch).item()
    assert loss.item() != pytest.approx(errors["all"], rel=1e-3)


def test_masks_reach_the_map_each_image_its_own(tmp_path):
    contexts = []
    trainer = make_focus_trainer(
        tmp_path, focus_map=lambda c: contexts.append(c) or torch.ones(len(c.level_B), *c.grid)
    )
    batch = first_batch(trainer)
    trainer.compute_loss(trainer.model, batch)
    masks = contexts[0].subject_masks_BSHW
    assert torch.equal(masks[:2], batch["chosen_masks"]) and torch.equal(masks[2:], batch["rejected_masks"])
    assert not torch.equal(masks[:2], masks[2:])


def test_no_gradient_flows_through_the_map(tmp_path):
    scale = torch.ones((), requires_grad=True)
    trainer = make_focus_trainer(tmp_path, focus_map=lambda c: scale * torch.ones(len(c.level_B), *c.grid))
    trainer.compute_loss(trainer.model, first_batch(trainer)).backward()
    assert scale.grad is None


class Halve(FocusMapCallback):
    def on_focus_maps(self, args, state, control, focus_maps, batch, **kwargs):
        return {"weights": focus_maps["weights"] * 0.5}


class Watch(FocusMapCallback):
    def __init__(self):
        self.seen = []

    def on_focus_maps(self, args, state, control, focus_maps, batch, **kwargs):
        self.seen.append((focus_maps, batch))


def test_callback_changes_the_loss_as_by_hand(tmp_path):
    """Half the weights are half the reward difference, so beta halves: callbacks act in order, before the weights are used."""
    settings = {"focus_map": "uniform", "beta": 100.0}
    plain = shaken(make_focus_trainer(tmp_path, **settings))
    batch = first_batch(plain)
    loss, outputs = plain.compute_loss(plain.model, batch, return_outputs=True)
    expected = -torch.nn.functional.logsigmoid(outputs["rewards"] / 4).mean().item()
    watch = Watch()
    changed = shaken(make_focus_trainer(tmp_path, callbacks=[Halve(), Halve(), watch], **settings))
    assert changed.compute_loss(changed.model, batch).item() == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(loss.item(), rel=1e-3)
    maps, seen_batch = watch.seen[0]
    assert torch.equal(maps["weights"], torch.full((4, 4, 4), 0.25))
    assert maps["prior"].shape == (4, 4, 4) and seen_batch["level"].shape == (4,)
    assert not any(value.requires_grad for value in maps.values())


def test_callbacks_are_called_in_training_and_evaluation(tmp_path):
    watch = Watch()
    trainer = make_focus_trainer(
        tmp_path, callbacks=[watch], eval_dataset=make_pairs(2, n_references=2, seed=1), per_device_eval_batch_size=1
    )
    trainer.train()
    assert len(watch.seen) == 3
    trainer.evaluate()
    assert len(watch.seen) == 5


def test_metrics_of_errors_are_unweighted_and_rewards_weighted(tmp_path):
    trainer = shaken(make_focus_trainer(tmp_path, focus_map=lambda c: torch.full((len(c.level_B), *c.grid), 0.25)))
    trainer.compute_loss(trainer.model, first_batch(trainer))
    metrics = trainer._metrics["train"].pop(trainer.accelerator)
    assert metrics["rewards/chosen"] == pytest.approx(-1000 * 0.25 * metrics["errors/chosen"], rel=1e-4)
    assert metrics["rewards/rejected"] == pytest.approx(-1000 * 0.25 * metrics["errors/rejected"], rel=1e-4)


def test_all_subjects_absent_is_valid(tmp_path):
    data = make_pairs(4, n_references=1)
    masks = data.features["chosen_masks"]
    rows = [{**row, "chosen_masks": [None], "rejected_masks": [None]} for row in data]
    data = data.from_list(rows, features=data.features)
    assert data.features["chosen_masks"] == masks
    trainer = make_focus_trainer(tmp_path, train_dataset=data)
    weights, _ = trainer.cell_weights(
        batch := first_batch(trainer), trainer._noise(trainer._encode(batch)[0], batch["seed"])
    )
    assert torch.allclose(weights, torch.tensor(0.1))
    trainer.train()
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_default_arguments_are_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PIPELINES["sd15"]().save_pretrained("base")
    trainer = FocusDPOTrainer("base", train_dataset=make_pairs(2))
    assert isinstance(trainer.args, FocusDPOConfig) and trainer.args.output_dir == "base-FocusDPO"


def test_card_names_the_method(tmp_path):
    trainer = make_focus_trainer(tmp_path)
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "focus-dpo" in card and "2509.01181" in card and "base_model" not in card
