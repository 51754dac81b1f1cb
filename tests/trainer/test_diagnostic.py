# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import re

import numpy as np
import PIL.Image
import pytest
import torch

from tests.fixtures.pairs import dataset_of, make_pairs
from tests.fixtures.trainers import assert_equal_weights, lora_of, make_focus_trainer
from trl_focus import FocusDiagnostic, focus_diagnostic
from trl_focus.trainer.diagnostic import LEVELS
from trl_focus.trainer.feature_blocks import _areas, score_feature_blocks


def pairs(n, background, seed=0):
    """
    A square that is white in chosen and black in rejected, on ground that is the same in both (0), is drawn anew for each
    (1), or is bright in chosen and dark in rejected ("shortcut").
    """
    rng = np.random.default_rng(seed)
    mask = PIL.Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    rows = []
    for i in range(n):
        row = {"prompt": f"pair {i}", "chosen_masks": [mask], "rejected_masks": [mask]}
        ground = rng.integers(0, 256, (64, 64, 3), np.uint8)
        for name, colour in (("chosen", "white"), ("rejected", "black")):
            image = {
                "same": ground,
                "free": rng.integers(0, 256, (64, 64, 3), np.uint8),
                "shortcut": ground // 4 + (180 if name == "chosen" else 0),
            }[background]
            row[name] = PIL.Image.fromarray(image.astype(np.uint8))
            row[name].paste(colour, (16, 16, 48, 48))
        rows.append(row)
    return dataset_of(*rows)


def diagnose(tmp_path, background, **kwargs):
    trainer = make_focus_trainer(
        tmp_path, focus_map="mask", background_weight=0.0, train_dataset=pairs(16, background), **kwargs
    )
    return focus_diagnostic(trainer, n_batches=4)


@pytest.mark.parametrize("background", ["free", "shortcut"])
def test_what_lies_outside_the_subjects_is_seen(tmp_path, background):
    found, same = diagnose(tmp_path, background), diagnose(tmp_path, "same")
    assert all(0 <= low < high <= 1 for high, low in zip(found.outside, same.outside, strict=True))


def test_numbers_are_those_of_plain_gradients(tmp_path):
    """One batch a half: cosine of two gradients, each from a loss written out."""
    trainer = make_focus_trainer(tmp_path, focus_map="mask", train_dataset=pairs(4, "free"))
    found = focus_diagnostic(trainer, n_batches=2)
    batches = list(trainer.get_train_dataloader())
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]

    def gradient(batch, weights_of_masks):
        x, prompt, references = trainer._encode(batch)
        noise = []
        for seed in batch["seed"]:
            noise.append(torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)))
        noise = torch.stack(noise * 2)
        noisy = (1 - LEVELS[1]) * x + LEVELS[1] * noise
        prediction = trainer.family.predict(trainer.model, noisy, torch.full((len(x),), LEVELS[1]), prompt, references)
        errors = (prediction - (noise - x)).square().mean(dim=1)
        masks = torch.cat([batch["chosen_masks"], batch["rejected_masks"]])[:, 0]
        weighted = (errors * weights_of_masks(masks)).mean(dim=(1, 2))
        grads = torch.autograd.grad(weighted[:2].sum() - weighted[2:].sum(), parameters)
        return torch.cat([grad.flatten() for grad in grads])

    def cosine(weights_of_masks):
        one, other = batches
        pairs_ = ((one, other), (other, one))
        cosines = [
            torch.cosine_similarity(gradient(x, weights_of_masks), gradient(y, lambda m: m), dim=0) for x, y in pairs_
        ]
        return sum(cosines).item() / 2

    assert found.alignment["uniform"][1] == pytest.approx(cosine(torch.ones_like), abs=1e-4)
    assert found.alignment["mask"][1] == pytest.approx(cosine(lambda m: 0.03 + 0.97 * m), abs=1e-4)


def test_training_goes_on_as_without(tmp_path):
    weights = []
    for looked in (True, False):
        trainer = make_focus_trainer(tmp_path)
        if looked:
            found = focus_diagnostic(trainer, n_batches=2)
            assert found.alignment.keys() == {"uniform", "mask", "focus"}
        trainer.train()
        weights.append(lora_of(trainer))
    assert_equal_weights(*weights)


def test_refusals(tmp_path):
    trainer = make_focus_trainer(tmp_path, train_dataset=make_pairs(4, n_references=1))
    for wrong in (0, 3):
        with pytest.raises(ValueError, match=f"`n_batches` is {wrong}; .* even number"):
            focus_diagnostic(trainer, wrong)
    with pytest.raises(ValueError, match="has 2 batches, and `n_batches` is 4"):
        focus_diagnostic(trainer, 4)


@pytest.mark.parametrize(
    "uniform,mask,advice",
    [
        (0.3, 0.6, "Use 'mask': its gradient points \\+0.30 better"),
        (0.6, 0.65, "Plain DPO will do about as well: the best weighting, 'mask', gains \\+0.05"),
        (0.02, 0.05, "Hardly any weighting finds a common direction"),
    ],
)
def test_advice(uniform, mask, advice):
    found = FocusDiagnostic({"uniform": [uniform] * 4, "mask": [mask] * 4}, [0.5] * 4)
    assert re.match(advice, found.advice)
    assert f"{uniform:.3f}" in str(found) and str(found).endswith(found.advice)


# ---- Which block ----


def test_every_block_is_scored_and_the_best_comes_first(tmp_path):
    trainer = make_focus_trainer(tmp_path, train_dataset=make_pairs(4, n_references=2))
    own = trainer._tap
    scores = score_feature_blocks(trainer, n_batches=2)
    assert {*scores} == {f"{kind}.{i}" for kind in ("transformer_blocks", "single_transformer_blocks") for i in (0, 1)}
    assert all(0 <= area <= 1 for areas in scores.values() for area in areas)
    means = [sum(areas) for areas in scores.values()]
    assert means == sorted(means, reverse=True) and all(len(areas) == len(LEVELS) for areas in scores.values())
    assert trainer._tap is own


def test_area_by_counting(tmp_path):
    similarity_HW = torch.tensor([[0.9, 0.2], [0.5, 0.4]])
    masks_SHW = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    batch = {"chosen_masks": masks_SHW[None], "reference_subjects": torch.tensor([[0, 1]])}
    areas = _areas(torch.stack([similarity_HW] * 2)[None].repeat(2, 1, 1, 1), batch)
    assert areas == [3 / 4]  # 0.9 is above both of 0.2 and 0.5, 0.4 above one; the second subject is absent


def test_a_map_that_compares_nothing_has_no_best_block(tmp_path):
    with pytest.raises(ValueError, match="compares no references"):
        score_feature_blocks(make_focus_trainer(tmp_path, focus_map="mask"))
