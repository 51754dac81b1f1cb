# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import math
from itertools import combinations

import datasets
import numpy as np
import pytest
import torch

from tests.fixtures.pairs import dataset_of, make_pairs, random_mask
from tests.fixtures.pipelines import PIPELINES
from tests.fixtures.trainers import assert_equal_weights, lora_of, make_focus_trainer, make_trainer
from trl_focus import FocusDPOConfig, FocusDPOTrainer, FocusMapCallback
from trl_focus.data.cached_table import CachedTable
from trl_focus.focus.allocation import FocusWeights, normalise
from trl_focus.focus.correspondence import graded
from trl_focus.focus.maps import FOCUS_MAPS, FocusContext, FocusSettings, focus, needs
from trl_focus.noise import noised_at
from trl_focus.trainer.feature_blocks import score_feature_blocks


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def weights_of(trainer, batch):
    """Weights of a batch, with the forward of the policy that they are read from."""
    x_BCHW, prompt, references = trainer._encode(batch)
    noised = trainer._noise(x_BCHW, batch["seed"])
    with trainer.watch(batch, noised, prompt, references) as seen, torch.no_grad():
        trainer.family.predict(trainer.model, noised.noisy_BCHW, noised.timestep_B, prompt, references)
    return trainer.cell_weights(batch, noised, [seen])  # of one forward


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


def test_every_map_trains_another_lora_and_focus_is_the_default(tmp_path):
    weights = []
    for kwargs in ({}, *({"focus_map": name} for name in FOCUS_MAPS), {"focus_matching": "top_k"}):
        trainer = make_focus_trainer(tmp_path, **kwargs)
        trainer.train()
        weights.append(lora_of(trainer))
    default, *named, top_k = weights
    assert_equal_weights(default, named[[*FOCUS_MAPS].index("focus")])
    for one, other in combinations([*named, top_k], 2):
        assert any(not torch.equal(value, other[name]) for name, value in one.items())


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
    mean_error = weights_of(trainer, batch).preference_BHW
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
    weights = weights_of(trainer, first_batch(trainer))
    assert torch.allclose(weights.preference_BHW, torch.tensor(0.03))
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
    assert "| focus_map | focus |" in card and "| focus_matching | graded |" in card


# ---- Correspondence, read from the policy's own forward ----


def by_hand(trainer, batch, block):
    """Similarities from a forward of its own: hidden states by a plain hook, pooled and compared one by one."""
    x_BCHW, prompt, references = trainer._encode(batch)
    noised = trainer._noise(x_BCHW, batch["seed"])
    states = []
    module = trainer.family.denoiser.get_submodule(block)
    handle = module.register_forward_hook(lambda module, args, output: states.append(output))
    with torch.no_grad():
        trainer.family.predict(trainer.model, noised.noisy_BCHW, noised.timestep_B, prompt, references)
    handle.remove()
    output = states[0]
    hidden = output[1] if isinstance(output, tuple) else output
    n_target, n_reference = noised.noisy_BCHW[0, 0].numel(), references[0][0, 0].numel()
    hidden = hidden[:, -(n_target + n_reference * len(references)) :]
    masks = batch["reference_masks"]
    rows = []
    for image in range(len(hidden)):
        target, *shown = hidden[image].split([n_target] + [n_reference] * len(references))
        for mask_Bhw, tokens in zip(masks, shown, strict=True):
            weight = mask_Bhw[image % len(mask_Bhw)].flatten()
            prototype = (tokens * weight[:, None]).sum(dim=0) / weight.sum()
            rows.append(torch.nn.functional.cosine_similarity(target, prototype[None], dim=1))
    return torch.stack(rows).reshape(len(hidden), len(references), *noised.noisy_BCHW.shape[-2:])


def with_reference_masks(n):
    data = make_pairs(n, n_references=2)
    rng = np.random.default_rng(5)
    return dataset_of(
        *(
            {**row, "reference_masks": [random_mask(rng), random_mask(rng)], "reference_subjects": [1, 0]}
            for row in data
        )
    )


@pytest.mark.parametrize("block", ["transformer_blocks.1", "single_transformer_blocks.0"])
def test_similarity_is_that_of_the_policys_features(tmp_path, block):
    contexts = []

    @needs("similarity")
    def own_map(context):
        contexts.append(context)
        return torch.ones(len(context.level_B), *context.grid)

    trainer = shaken(
        make_focus_trainer(
            tmp_path, focus_map=own_map, focus_blocks=[block], train_dataset=with_reference_masks(4), crop="center"
        )
    )
    batch = first_batch(trainer)
    trainer.compute_loss(trainer.model, batch)
    (context,) = contexts
    torch.testing.assert_close(context.similarity_BRHW, by_hand(trainer, batch, block), rtol=1e-4, atol=1e-5)
    assert context.reference_subjects_BR.tolist() == [[1, 0]] * 4
    shares = torch.stack([mask.mean(dim=(1, 2)) for mask in batch["reference_masks"]], dim=1)
    torch.testing.assert_close(context.reference_shares_BR, torch.cat([shares, shares]))
    assert context.detail_BHW is None


def test_several_blocks_are_averaged(tmp_path):
    maps = []
    blocks = ["transformer_blocks.1", "single_transformer_blocks.0"]
    own_map = needs("similarity")(lambda c: maps.append(c.similarity_BRHW) or torch.ones(len(c.level_B), *c.grid))
    for chosen in ([blocks[0]], [blocks[1]], blocks):
        trainer = shaken(make_focus_trainer(tmp_path, focus_map=own_map, focus_blocks=chosen))
        trainer.compute_loss(trainer.model, first_batch(trainer))
    torch.testing.assert_close(maps[2], (maps[0] + maps[1]) / 2)
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"bf16": True}])
def test_tapping_changes_no_loss(tmp_path, settings):
    """The same weights with and without the tap: the loss and its gradients are equal to the last bit."""

    def uniform_map(context):
        return torch.ones(len(context.level_B), *context.grid)

    results = []
    for own_map in (uniform_map, needs("similarity", "detail")(lambda context: uniform_map(context))):
        trainer = shaken(make_focus_trainer(tmp_path, focus_map=own_map, **settings))
        trainer.train()
        results.append(lora_of(trainer))
    assert_equal_weights(*results)


def test_weights_are_those_of_the_map_on_the_policys_features(tmp_path):
    trainer = shaken(make_focus_trainer(tmp_path, train_dataset=with_reference_masks(4)))
    batch = first_batch(trainer)
    weights = weights_of(trainer, batch)
    noised = trainer._noise(trainer._encode(batch)[0], batch["seed"])
    context = FocusContext(
        noised.level_B,
        (4, 4),
        torch.cat([batch["chosen_masks"], batch["rejected_masks"]]),
        by_hand(trainer, batch, trainer.family.feature_blocks[0]),
        torch.tensor([[1, 0]] * 4),
        detail_BHW=torch.cat([batch["chosen_detail"], batch["rejected_detail"]]),
    )
    expected = focus(context, FocusSettings(FocusWeights(0.03, 0.47, 0.2, 0.3, 0.2)))
    assert weights.parts.keys() == expected.keys()
    for name, part in expected.items():
        torch.testing.assert_close(weights.parts[name], part, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how,mean", [("mean", 1.0), ("subject", None)])
def test_normalization(tmp_path, how, mean):
    batch, weights = None, []
    for normalization in ("none", how):
        trainer = shaken(make_focus_trainer(tmp_path, focus_map="mask", focus_normalization=normalization))
        batch = first_batch(trainer)
        weights.append(weights_of(trainer, batch).preference_BHW)
    masks = torch.cat([batch["chosen_masks"], batch["rejected_masks"]])
    torch.testing.assert_close(weights[1], normalise(weights[0], how, masks))
    if mean:
        torch.testing.assert_close(weights[1].mean(dim=(1, 2)), torch.full((4,), mean))


@pytest.mark.parametrize("where", ["similarity", "everywhere"])
@pytest.mark.parametrize("name", ["mask", "patch", "focus"])
def test_data_without_masks(tmp_path, where, name):
    data = make_pairs(4, n_references=2, masks=False)
    trainer = make_focus_trainer(tmp_path, focus_map=name, focus_prior=where, train_dataset=data)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
    weights = weights_of(trainer, first_batch(trainer))
    assert {"everywhere": {1.0}, "similarity": {0.0, 1.0}}[where] == {*weights.parts["prior"].unique().tolist()}


class TestAnchor:
    LOSSES = {"loss_type": ["sigmoid", "anchor"], "loss_weights": [1.0, 0.04]}

    @pytest.mark.parametrize("own_map", [None, lambda context: torch.ones(4, *context.grid)])
    def test_it_needs_to_know_where_the_subjects_are_whatever_the_map(self, tmp_path, own_map):
        data = make_pairs(4, n_references=2, masks=False)
        with pytest.raises(ValueError, match="chosen_masks"):
            make_focus_trainer(
                tmp_path, focus_map=own_map or "uniform", focus_prior="masks", train_dataset=data, **self.LOSSES
            )
        trainer = make_focus_trainer(
            tmp_path, focus_map=own_map or "uniform", focus_prior="similarity", train_dataset=data, **self.LOSSES
        )
        weights = weights_of(trainer, first_batch(trainer))
        torch.testing.assert_close(weights.anchor_BHW, 1 - weights.parts["prior"])
        assert {*weights.anchor_BHW.unique().tolist()} == {0.0, 1.0}

    def test_subjects_that_are_beside_the_point_are_held_too(self, tmp_path):
        data = with_reference_masks(2)
        held = {}
        for gate in ("none", "shown"):
            trainer = make_focus_trainer(tmp_path, train_dataset=data, subject_gate=gate, **self.LOSSES)
            held[gate] = weights_of(trainer, first_batch(trainer)).anchor_BHW
        assert (held["shown"] >= held["none"] - 1e-6).all() and held["shown"].sum() > held["none"].sum()

    def test_a_callback_may_say_where_the_subjects_are(self, tmp_path):
        class Double(FocusMapCallback):
            def on_focus_maps(self, args, state, control, focus_maps, batch, **kwargs):
                return {"prior": 2 * focus_maps["prior"]}

        trainer = make_focus_trainer(tmp_path, callbacks=[Double()], **self.LOSSES)
        weights = weights_of(trainer, first_batch(trainer))
        torch.testing.assert_close(weights.anchor_BHW, (1 - weights.parts["prior"]).clamp(min=0))  # never a reward
        assert weights.parts["prior"].max() > 1

    def test_drift_is_from_the_reference_that_was_given(self, tmp_path):
        settings = {"max_steps": 1, "logging_steps": 1, "loss_type": ["sigmoid", "anchor"]}
        same = make_focus_trainer(tmp_path, **settings)
        other = make_focus_trainer(tmp_path, ref_model=PIPELINES["flux2_klein"](seed=1), **settings)
        for trainer in (same, other):
            trainer.train()
        assert same.state.log_history[0]["drift"] == 0 < other.state.log_history[0]["drift"]


def test_a_stream_gets_the_same_maps(tmp_path):
    data = with_reference_masks(2)
    parts = []
    for kind in (data, data.to_iterable_dataset()):
        trainer = shaken(make_focus_trainer(tmp_path, train_dataset=kind, train_sampling_strategy="sequential"))
        parts.append(weights_of(trainer, first_batch(trainer)).parts)
    for name, part in parts[0].items():
        torch.testing.assert_close(part, parts[1][name], rtol=1e-4, atol=1e-4)


class TestModelsWithoutReferenceTokens:
    def test_masks_and_detail_are_left(self, tmp_path):
        trainer = shaken(make_focus_trainer(tmp_path, family="sd15"))
        assert trainer.args.focus_matching == "none" and trainer._tap is None
        weights = weights_of(trainer, first_batch(trainer))
        assert weights.parts.keys() == {"prior", "detail", "weights"}
        prior, detail = weights.parts["prior"], weights.parts["detail"]
        torch.testing.assert_close(weights.preference_BHW, 0.03 + 0.77 * prior + 0.2 * detail)

    @pytest.mark.parametrize(
        "settings",
        [
            {"focus_matching": "graded"},
            {"focus_map": "patch", "focus_matching": "top_k"},
            {"focus_map": "mask", "focus_prior": "similarity"},
            {"focus_map": needs("similarity")(lambda context: None)},
        ],
    )
    def test_correspondence_is_refused(self, tmp_path, settings):
        with pytest.raises(ValueError, match="tokens of their references, and StableDiffusion has none: set"):
            make_focus_trainer(tmp_path, family="sd15", **settings)

    def test_what_is_made_of_it_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="'patch'` is made of a matching"):
            make_focus_trainer(tmp_path, family="sd15", focus_map="patch")
        with pytest.raises(ValueError, match="detail_gate='alignment'"):
            make_focus_trainer(tmp_path, family="sd15", detail_gate="alignment")


def test_unknown_blocks_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="no block 'layers.3'. It has transformer_blocks.0"):
        make_focus_trainer(tmp_path, focus_blocks=["layers.3"])


@pytest.mark.parametrize("name", ["uniform", "mask"])
def test_maps_that_need_nothing_cost_nothing(tmp_path, name):
    trainer = make_focus_trainer(tmp_path, focus_map=name)
    assert trainer._tap is None and "chosen_detail" not in first_batch(trainer)


# ---- Metrics ----


def test_metrics_of_focus(tmp_path):
    trainer = shaken(make_focus_trainer(tmp_path, train_dataset=with_reference_masks(4)))
    batch = first_batch(trainer)
    _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    metrics = trainer._metrics["train"].pop(trainer.accelerator)
    weights = weights_of(trainer, batch)
    prior, matched = weights.parts["prior"], weights.parts["matched"]
    on_subjects = (weights.preference_BHW * prior).sum(dim=(1, 2)) / weights.preference_BHW.sum(dim=(1, 2))
    alignment = matched.sum(dim=(1, 2)) / prior.sum(dim=(1, 2))
    for i, image in enumerate(("chosen", "rejected")):
        half = slice(2 * i, 2 * i + 2)
        assert metrics[f"focus/weight_on_subjects/{image}"] == pytest.approx(on_subjects[half].mean().item(), rel=1e-4)
        assert metrics[f"focus/alignment/{image}"] == pytest.approx(alignment[half].mean().item(), rel=1e-3)
    inside, outside = (metrics[f"rewards/margins/{name}"] for name in ("inside", "outside"))
    assert inside + outside == pytest.approx(metrics["rewards/margins"], rel=1e-4)
    assert abs(inside) > 1e-6 and abs(outside) > 1e-6
    for name in ("rewards/margins/inside", "focus/alignment", "focus/weight_on_subjects"):
        levels = [key for key in metrics if key.startswith(f"{name}/level_")]
        assert 1 <= len(levels) <= 2


def test_margin_outside_is_nothing_where_the_background_weighs_nothing(tmp_path):
    boxes = make_pairs(4, n_references=1, size=(64, 64))
    trainer = shaken(make_focus_trainer(tmp_path, focus_map="mask", background_weight=0.0, train_dataset=boxes))
    batch = first_batch(trainer)
    for name in ("chosen_masks", "rejected_masks"):
        batch[name] = (batch[name] > 0.5).float()
    trainer.compute_loss(trainer.model, batch)
    assert trainer._metrics["train"].pop(trainer.accelerator)["rewards/margins/outside"] == 0


def test_a_callback_that_returns_a_wrong_shape_is_refused_by_name(tmp_path):
    class Flat(FocusMapCallback):
        def on_focus_maps(self, args, state, control, focus_maps, batch, **kwargs):
            return {"weights": focus_maps["weights"].flatten(1)}

    trainer = make_focus_trainer(tmp_path, callbacks=[Flat()])
    with pytest.raises(ValueError, match=r"`Flat.on_focus_maps` \(map 'weights'\) returned \(4, 16\).*\(4, 4, 4\)"):
        trainer.train()


class TestSubjectGate:
    def test_what_images_show_is_measured_once_by_the_model_without_its_lora(self, tmp_path, monkeypatch):
        """Against a forward of its own on the untrained model; a second trainer finds it, one with other blocks does not."""
        settings = {"train_dataset": with_reference_masks(4), "subject_gate": "shown", "beta": 100.0}
        untouched = make_focus_trainer(tmp_path / "untouched", **settings)
        trainer = shaken(make_focus_trainer(tmp_path, **settings))
        batch = first_batch(trainer)
        contexts = []
        focus_map = trainer.focus_map
        monkeypatch.setattr(trainer, "focus_map", lambda context: contexts.append(context) or focus_map(context))
        trainer.compute_loss(trainer.model, batch)
        (context,) = contexts
        monkeypatch.setattr(untouched, "_noise", lambda x, seeds: noised_at(untouched.family.process, x, seeds, 0.25))
        similarity_BRHW = by_hand(untouched, batch, untouched.feature_blocks[0])
        found = graded(similarity_BRHW, context.reference_subjects_BR, context.subject_masks_BSHW)
        masks_BSHW = context.subject_masks_BSHW
        expected = (masks_BSHW * found.matched_BHW[:, None]).sum(dim=(2, 3)) / masks_BSHW.sum(dim=(2, 3)).clamp(
            min=1e-6
        )
        torch.testing.assert_close(context.shown_BS, expected, rtol=1e-4, atol=1e-5)
        assert expected.max() > 0

        again = make_focus_trainer(tmp_path / "again", **settings)
        monkeypatch.setattr(again, "shown", None)
        again.get_train_dataloader()  # found
        other = make_focus_trainer(tmp_path / "other", **settings, focus_blocks=["transformer_blocks.1"])
        monkeypatch.setattr(other, "shown", None)
        with pytest.raises(TypeError):
            other.get_train_dataloader()

    def test_it_trains_and_evaluates_another_lora(self, tmp_path):
        settings = {"train_dataset": with_reference_masks(4), "eval_dataset": with_reference_masks(2), "beta": 100.0}
        loras = []
        for gate in ("none", "shown"):
            trainer = make_focus_trainer(tmp_path / gate, subject_gate=gate, **settings)
            trainer.train()
            assert trainer.evaluate()["eval_loss"] > 0
            loras.append(torch.cat([value.flatten() for value in lora_of(trainer).values()]))
        assert not torch.equal(*loras)

    def test_every_crop_is_measured_with_its_caption(self, tmp_path):
        settings = {"crop": "random", "encode_variants": 2, "caption_dropout": 0.5, "subject_gate": "shown"}
        trainer = make_focus_trainer(tmp_path, train_dataset=make_pairs(6, size=(96, 64), n_references=1), **settings)
        loader, found, dropped = trainer.get_train_dataloader(), {}, 0
        for epoch in (0, 1, 2):
            loader.set_epoch(epoch)
            for batch in loader:
                shown_B2S = batch["shown"].unflatten(0, (2, -1)).transpose(0, 1)
                found.update({(epoch, row): value for row, value in zip(batch["row"], shown_B2S, strict=True)})
                if epoch < 2:  # whose noise it was measured with
                    live_B2S = trainer.shown(batch).unflatten(0, (2, -1)).transpose(0, 1)
                    for prompt, value, live in zip(batch["prompt"], shown_B2S, live_B2S, strict=True):
                        if prompt:
                            torch.testing.assert_close(value, live, rtol=1e-3, atol=1e-5)
                        else:
                            dropped += not torch.allclose(value, live, rtol=1e-3, atol=1e-5)
        assert dropped
        for row in range(6):
            assert torch.equal(found[0, row], found[2, row]) and not torch.equal(found[0, row], found[1, row])

    def test_it_is_measured_in_eval_mode_where_another_node_made_no_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")  # of its own: nothing is found
        trainer, modes = make_focus_trainer(tmp_path, subject_gate="shown"), []
        trainer.model.train()
        monkeypatch.setattr(CachedTable, "fill", lambda self, rank, world_size: None)
        shown = trainer.shown
        monkeypatch.setattr(trainer, "shown", lambda batch: modes.append(trainer.model.training) or shown(batch))
        trainer.get_train_dataloader()
        assert len(modes) == 8 and not any(modes) and trainer.model.training

    def test_a_search_for_blocks_leaves_what_is_measured_alone(self, tmp_path):
        settings = {"train_dataset": with_reference_masks(2), "subject_gate": "shown"}
        score_feature_blocks(make_focus_trainer(tmp_path, **settings), n_batches=1)
        trainer = make_focus_trainer(tmp_path / "next", **settings)
        batch = first_batch(trainer)
        torch.testing.assert_close(batch["shown"], trainer.shown(batch), rtol=1e-3, atol=1e-5)

    def test_it_needs_rows_that_are_encoded_once(self, tmp_path):
        stream = with_reference_masks(4).to_iterable_dataset()
        with pytest.raises(ValueError, match="`subject_gate` is for rows that are encoded once"):
            make_focus_trainer(tmp_path, train_dataset=stream, subject_gate="shown")
        with pytest.raises(ValueError, match="`encode_once` is False"):
            make_focus_trainer(tmp_path, subject_gate="shown", encode_once=False)

    def test_it_needs_a_matching(self, tmp_path):
        with pytest.raises(ValueError, match="choose 'none' for both"):
            make_focus_trainer(tmp_path, subject_gate="shown", focus_matching="none")
        with pytest.raises(ValueError, match="`focus_matching` is 'none'"):
            make_focus_trainer(tmp_path, family="sdxl", subject_gate="shown", train_dataset=make_pairs(2))
