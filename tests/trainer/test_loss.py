# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The trainer's loss and gradient against a plain recomputation: pictures in, formulas of the papers, loss out."""

import itertools
import math

import numpy as np
import pytest
import torch

from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES
from tests.fixtures.trainers import make_trainer
from trl_focus import DiffusionDPOTrainer, FocusDPOTrainer
from trl_focus.noise import draw


BETA = 50.0


def plain_sigmoid(x):
    return 1 / (1 + math.exp(-x))


def plain_loss(name, gap, chosen_error):
    """Loss of one pair and its derivatives by `gap` and by `chosen_error`, from the formulas, in plain Python."""
    inside = BETA * gap
    if name == "sigmoid":
        return -math.log(plain_sigmoid(inside)), -BETA * plain_sigmoid(-inside), 0.0
    if name == "robust":
        eps = 0.1
        loss = (-(1 - eps) * math.log(plain_sigmoid(inside)) + eps * math.log(plain_sigmoid(-inside))) / (1 - 2 * eps)
        slope = (-(1 - eps) * plain_sigmoid(-inside) - eps * plain_sigmoid(inside)) / (1 - 2 * eps)
        return loss, BETA * slope, 0.0
    if name == "hinge":
        return max(0.0, 1 - inside), -BETA if inside < 1 else 0.0, 0.0
    if name == "ipo":
        return (gap - 1 / (2 * BETA)) ** 2, 2 * (gap - 1 / (2 * BETA)), 0.0
    if name == "sft":
        return BETA / 4 * chosen_error, 0.0, BETA / 4


def plain_sigma(config, u, tokens):
    """Noise level at a quantile, shifted by the scheduler's setting or, as in FLUX.1, by the image's tokens."""
    shift = config.shift
    if config.use_dynamic_shifting:
        shift = math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))
    return shift * u / (1 + (shift - 1) * u)


def plain_predictions(trainer, batch, adapter_on):
    """Prediction and target of each image, one at a time, as (pair, side) -> two tensors (1, C, H, W)."""
    pipeline, family = trainer.pipeline, trainer.family
    predictions = {}
    for i, seed in enumerate(batch["seed"]):
        for side in ("chosen", "rejected"):
            pixels = batch[side][i : i + 1].float() / 127.5 - 1
            with torch.no_grad():
                clean = family.encode_image(pixels)
                prompt = family.encode_prompt([batch["prompt"][i]], [batch["prompt_references"][i]])
                references = [family.encode_image(r[i : i + 1].float() / 127.5 - 1) for r in batch["references"]]
            noise, u = draw([seed], clean.shape[1:], "cpu")
            if hasattr(pipeline, "unet"):
                alphas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
                t = int(u.item() * 1000)
                alpha = float(np.prod(1 - alphas[: t + 1]))
                signal, spread = alpha**0.5, (1 - alpha) ** 0.5
                noisy, time = signal * clean + spread * noise, torch.tensor([t])
                v = pipeline.scheduler.config.prediction_type == "v_prediction"
                target = signal * noise - spread * clean if v else noise
            else:
                sigma = plain_sigma(pipeline.scheduler.config, u.item(), clean[0, 0].numel())
                noisy, time, target = (1 - sigma) * clean + sigma * noise, torch.tensor([sigma]), noise - clean
            model = trainer.model
            if adapter_on:
                prediction = family.predict(model, noisy, time, prompt, references)
            else:
                with torch.no_grad(), model.disable_adapter():
                    prediction = family.predict(model, noisy, time, prompt, references)
            predictions[i, side] = prediction, target
    return predictions


def squared(a, b):
    return ((a - b) ** 2).mean(dim=1)[0]


def plain_errors(trainer, batch, adapter_on):
    """Squared error of each latent cell of each image, as (pair, side) -> tensor (H, W)."""
    return {key: squared(*pair) for key, pair in plain_predictions(trainer, batch, adapter_on).items()}


def plain_subjects(trainer, batch):
    """Share of each cell that a subject has, as (pair, side) -> tensor (H, W)."""
    cell, shares = trainer.family.cell_size, {}
    for i, row in enumerate(batch["row"]):
        for side in ("chosen", "rejected"):
            masks = np.stack([np.asarray(m, float) / 255 for m in trainer.train_dataset.dataset[row][f"{side}_masks"]])
            cells = masks.reshape(len(masks), 64 // cell, cell, 64 // cell, cell).mean(axis=(2, 4))
            shares[i, side] = torch.tensor(cells.max(axis=0))
    return shares


def shaken_trainer(tmp_path, family, trainer_class=DiffusionDPOTrainer, **kwargs):
    """A trainer whose LoRA is not at its start, where policy and reference would be equal."""
    settings = {
        "beta": BETA,
        "disable_dropout": False,
        "encode_once": False,
        **kwargs,
    }  # a batch then has all from the start
    trainer = make_trainer(trainer_class, tmp_path, family=family, **settings)
    generator = torch.Generator().manual_seed(1)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.06, generator=generator)
    return trainer


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def check_against_plain(trainer, names, weights=None, loss_weights=None, bound=None):
    batch = first_batch(trainer)
    policy, reference = (plain_errors(trainer, batch, on) for on in (True, False))
    if weights is None:
        weights = {key: torch.ones_like(error) for key, error in policy.items()}
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    total, gradient = 0.0, [torch.zeros_like(p) for p in parameters]
    pairs = len(batch["seed"])
    for i in range(pairs):
        change = {
            side: float((weights[i, side] * (policy[i, side] - reference[i, side]).double()).mean().detach())
            for side in ("chosen", "rejected")
        }
        clipped = bound is not None and change["rejected"] > bound
        if clipped:
            change["rejected"] = bound
        gap = -(change["chosen"] - change["rejected"]) / 2
        chosen_error = float(policy[i, "chosen"].mean().detach())
        by_gap = by_error = 0.0
        for name, factor in zip(names, loss_weights or [1.0] * len(names), strict=True):
            loss, slope, error_slope = plain_loss(name, gap, chosen_error)
            total, by_gap, by_error = (
                total + factor * loss / pairs,
                by_gap + factor * slope,
                by_error + factor * error_slope,
            )
        # the chain rule by hand: what each image's weighted and plain error contribute
        objective = -0.5 * by_gap * (weights[i, "chosen"] * policy[i, "chosen"]).mean()
        if not clipped:
            objective = objective + 0.5 * by_gap * (weights[i, "rejected"] * policy[i, "rejected"]).mean()
        objective = objective + by_error * policy[i, "chosen"].mean()
        for into, g in zip(gradient, torch.autograd.grad(objective / pairs, parameters), strict=True):
            into += g

    check_step(trainer, batch, total, gradient)


def check_step(trainer, batch, total, gradient):
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(total, rel=1e-4)
    scale = max(g.abs().max() for g in gradient)
    assert scale > 0
    for parameter, expected in zip(parameters, gradient, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-4 * scale.item())


# What a loss does to errors is the same for all families: the others are tried on a UNet and a transformer
@pytest.mark.parametrize(
    "family, loss",
    [
        *((family, "sigmoid") for family in PIPELINES),
        *itertools.product(["sd15", "flux2_klein"], ["robust", "hinge", "ipo", "sft"]),
    ],
)
def test_loss_and_gradient(tmp_path, family, loss):
    smoothing = {"label_smoothing": 0.1} if loss == "robust" else {}
    trainer = shaken_trainer(tmp_path, family, loss_type=[loss], guidance_scale=3.0, **smoothing)
    check_against_plain(trainer, [loss])


def test_weighted_sum_of_losses(tmp_path):
    trainer = shaken_trainer(tmp_path, "sd15", loss_type=["sigmoid", "sft"], loss_weights=[0.7, 0.2])
    check_against_plain(trainer, ["sigmoid", "sft"], loss_weights=[0.7, 0.2])


def test_bound_on_the_rejected_error(tmp_path):
    """The bound lies between the changes of the two rejected images, so that it cuts one and leaves the other."""
    trainer = shaken_trainer(tmp_path, "sd15")
    batch = first_batch(trainer)
    policy, reference = (plain_errors(trainer, batch, on) for on in (True, False))
    changes = sorted(float((policy[i, "rejected"] - reference[i, "rejected"]).mean().detach()) for i in range(2))
    bound = sum(changes) / 2
    trainer.args.rejected_error_bound = bound
    check_against_plain(trainer, ["sigmoid"], bound=bound)


@pytest.mark.parametrize("family", ["flux2_klein", "sdxl"])
def test_masks_weight_the_error(tmp_path, family):
    trainer = shaken_trainer(
        tmp_path, family, FocusDPOTrainer, focus_map="mask", background_weight=0.2, prior_weight=0.5
    )
    subjects = plain_subjects(trainer, first_batch(trainer))
    weights = {key: 0.2 + 0.5 * cells for key, cells in subjects.items()}
    assert len({float(value) for map_ in weights.values() for value in map_.flatten()}) > 1
    check_against_plain(trainer, ["sigmoid"], weights)


@pytest.mark.parametrize("family", ["flux2_klein", "sdxl"])
@pytest.mark.parametrize("trainer_class", [DiffusionDPOTrainer, FocusDPOTrainer])
@pytest.mark.parametrize("one_forward", [True, False])
def test_anchor_ties_predictions_to_the_reference_outside_of_subjects(tmp_path, family, trainer_class, one_forward):
    trainer = shaken_trainer(tmp_path, family, trainer_class, loss_type=["sigmoid", "anchor"], loss_weights=[0.0, 1.0])
    trainer.args.one_forward = one_forward
    batch = first_batch(trainer)
    policy, reference = (plain_predictions(trainer, batch, on) for on in (True, False))
    outside = dict.fromkeys(policy, 1.0)
    if trainer_class is FocusDPOTrainer:
        outside = {key: 1 - cells for key, cells in plain_subjects(trainer, batch).items()}
        assert 0 < np.mean([cells.mean() for cells in outside.values()]) < 1
    drift = sum((outside[key] * squared(policy[key][0], reference[key][0])).mean() for key in policy) / len(policy)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    check_step(trainer, batch, BETA / 4 * drift.item(), torch.autograd.grad(BETA / 4 * drift, parameters))


def test_anchor_is_added_as_it_is_weighted_and_logged(tmp_path):
    losses = []
    for weights in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.25]):
        trainer = shaken_trainer(tmp_path, "sd15", loss_type=["sigmoid", "anchor"], loss_weights=weights)
        losses.append(trainer.compute_loss(trainer.model, first_batch(trainer)).item())
    assert losses[2] == pytest.approx(0.5 * losses[0] + 0.25 * losses[1], rel=1e-5)
    metrics = trainer._means.pop(trainer.accelerator)
    assert metrics["drift"] == pytest.approx(losses[1] * 4 / BETA, rel=1e-5)


def test_map_leaves_the_sft_term_alone_unless_asked(tmp_path):
    losses = {}
    for focus_sft in (False, True):
        trainer = shaken_trainer(
            tmp_path, "sd15", FocusDPOTrainer, focus_map="mask", loss_type=["sft"], focus_sft=focus_sft
        )
        losses[focus_sft] = trainer.compute_loss(trainer.model, first_batch(trainer)).item()
        plain = plain_errors(trainer, first_batch(trainer), adapter_on=True)
    unweighted = BETA / 4 * sum(plain[i, "chosen"].mean().item() for i in range(2)) / 2
    assert losses[False] == pytest.approx(unweighted, rel=1e-4)
    assert losses[True] < 0.95 * losses[False]


def test_pair_shares_noise_and_level_and_pairs_differ(tmp_path):
    trainer = make_trainer(output_dir=tmp_path)
    batch = first_batch(trainer)
    calls = []
    process = trainer.family.process.noise

    class Recorder:
        def noise(self, x, noise, u):
            calls.append((noise, u))
            return process(x, noise, u)

    trainer.family.process = Recorder()
    trainer.compute_loss(trainer.model, batch)
    (noise, u), pairs = calls[0], len(batch["seed"])
    assert torch.equal(noise[:pairs], noise[pairs:]) and torch.equal(u[:pairs], u[pairs:])
    assert u[0] != u[1] and not torch.equal(noise[0], noise[1])
    assert noise.dtype == u.dtype == torch.float32


@pytest.mark.parametrize("family", PIPELINES)
def test_policy_at_its_start_is_the_reference(tmp_path, family):
    """With LoRA at its start the two errors are equal to the last bit: the loss is ln 2, and no reward is anything but 0."""
    trainer = make_trainer(output_dir=tmp_path, family=family)
    loss, outputs = trainer.compute_loss(trainer.model, first_batch(trainer), return_outputs=True)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)
    assert torch.count_nonzero(outputs["rewards"]) == 0


def test_precision_of_errors_and_levels_under_bf16(tmp_path):
    """Noise levels reach a bf16 denoiser unrounded, and errors are formed in fp32."""
    trainer = make_trainer(output_dir=tmp_path, bf16=True)
    batch = first_batch(trainer)
    seen = {}
    trainer.model.register_forward_pre_hook(lambda m, args, kwargs: seen.update(kwargs), with_kwargs=True)
    loss = trainer.compute_loss(trainer.model, batch)
    noise_shape = trainer._encode(batch)[0].shape[1:]
    _, u = draw(batch["seed"], noise_shape, "cpu")
    assert seen["timestep"].dtype == torch.float32 and torch.equal(seen["timestep"], torch.cat([u, u]))
    assert loss.dtype == torch.float32


def test_bf16_base_computes_in_bf16_with_levels_unrounded(tmp_path):
    pipeline = PIPELINES["flux2_klein"]().to(torch.bfloat16)
    trainer = make_trainer(output_dir=tmp_path, pipeline=pipeline)
    inputs, outputs = [], []
    block = trainer.family.denoiser.transformer_blocks[0].attn.to_q
    block.register_forward_hook(lambda m, args, output: outputs.append(output.dtype))
    trainer.family.denoiser.time_guidance_embed.register_forward_pre_hook(lambda m, args: inputs.append(args[0].dtype))
    trainer.train()
    assert {*outputs} == {torch.bfloat16} and {*inputs} == {torch.float32}
    assert all(value.dtype == torch.float32 for value in trainer.model.parameters() if value.requires_grad)


def test_reference_counts_differ_within_a_dataset(tmp_path):
    data = make_pairs(6, n_references=[0, 1, 2, 0, 1, 2])
    trainer = make_trainer(output_dir=tmp_path, train_dataset=data, max_steps=-1, num_train_epochs=1)
    counts = []
    collate = trainer.data_collator

    def record(rows):
        batch = collate(rows)
        counts.append((len(batch["references"]), len(rows)))
        return batch

    trainer.data_collator = record
    trainer.train()
    assert sorted(counts) == [(0, 2), (1, 2), (2, 2)]
