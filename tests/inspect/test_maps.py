# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import PIL.Image
import pytest
import torch

from tests.fixtures.pairs import dataset_of, make_pairs, random_image
from tests.fixtures.pipelines import PIPELINES, PROMPT_KWARGS
from tests.fixtures.trainers import make_focus_trainer
from trl_focus.families import family_class
from trl_focus.inspect.maps import Matcher, PairMaps
from trl_focus.noise import RectifiedFlow, draw


def half_masked():
    mask = PIL.Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    rng = np.random.default_rng(0)
    row = {
        "prompt": "a",
        "chosen": random_image(rng, smooth=False),
        "rejected": PIL.Image.new("RGB", (64, 64), "grey"),
    }
    return {**row, "chosen_masks": [mask], "rejected_masks": [None]}


def rows_of(dataset):
    return [dataset.with_format("arrow")[i].to_pylist()[0] for i in range(len(dataset))]


@pytest.mark.parametrize("level", [0.0, 0.4, 0.8])
def test_without_a_model(level):
    (row,) = rows_of(dataset_of(half_masked()))
    parts = PairMaps.of(row, resolution=64).parts(level)
    inside = torch.zeros(4, 4)
    inside[:, :2] = 1
    assert {*parts} == {"prior", "detail", "weights"}
    assert torch.equal(parts["prior"], torch.stack([inside, torch.zeros(4, 4)]))
    noise = 0.8 if level <= 0.5 else 0.0  # of noise most is detail; the gate closes at 0.5
    assert (parts["detail"][0, :, :2] > (1 - level) * noise - 1e-6).all() and (parts["detail"][0, :, 2:] == 0).all()
    assert (parts["detail"] > 0).any() == (level <= 0.5)
    torch.testing.assert_close(parts["weights"], 0.03 + 0.47 * parts["prior"] + 0.2 * parts["detail"])


def test_drawn():
    (row,) = rows_of(dataset_of(half_masked()))
    page = PairMaps.of(row, resolution=64).draw(0.25)
    assert page.width == 8 + 4 * 200  # image, prior, detail, weights


def test_no_masks():
    (row,) = rows_of(make_pairs(1, masks=False))
    with pytest.raises(ValueError, match="has no masks of both images"):
        PairMaps.of(row)


@pytest.fixture(scope="module")
def family():
    pipeline = PIPELINES["flux2_klein"]()
    return family_class([type(pipeline).__name__])(pipeline, PROMPT_KWARGS["flux2_klein"])


class TestWithAModel:
    def test_as_in_training(self, family, tmp_path):
        """The parts are those that a trainer makes of the same pair at the same noise."""
        pairs = make_pairs(2, n_references=2)
        trainer = make_focus_trainer(tmp_path, pipeline=PIPELINES["flux2_klein"](), train_dataset=pairs)
        batch = next(iter(trainer.get_train_dataloader()))
        row = batch["row"][0]
        maps = PairMaps.of(rows_of(pairs)[row], Matcher(family, 64))
        x_BCHW, prompt, references = trainer._encode(batch)
        maps.batch["seed"] = batch["seed"][:1]
        noise_BCHW, _ = draw(batch["seed"], x_BCHW.shape[1:], x_BCHW.device)
        noised = RectifiedFlow().noise(x_BCHW, torch.cat([noise_BCHW] * 2), torch.full((4,), 0.3))
        with torch.no_grad(), trainer.watch(batch, noised, prompt, references) as seen:
            trainer.family.predict(trainer.model, noised.noisy_BCHW, noised.timestep_B, prompt, references)
        grid = tuple(x_BCHW.shape[-2:])
        expected = trainer.focus_map(trainer._focus_context(batch, noised.level_B, grid, seen))
        parts = maps.parts(0.3)
        assert {*parts} == {*expected} == {"prior", "matched", "structure", "leak", "detail", "weights"}
        for name, part in parts.items():
            torch.testing.assert_close(part, expected[name][[0, 2]], atol=1e-4, rtol=1e-4, msg=name)

    def test_the_level_matters(self, family):
        maps = PairMaps.of(rows_of(make_pairs(1, n_references=1))[0], Matcher(family, 64))
        low, high = (maps.matcher.similarity(maps.batch, level) for level in (0.0, 1.0))
        assert low.shape == (2, 1, 4, 4) and not torch.allclose(low, high)
        assert torch.equal(high, maps.matcher.similarity(maps.batch, 1.0))  # the same noise again

    def test_the_level_is_no_quantile(self, family, monkeypatch):
        maps = PairMaps.of(rows_of(make_pairs(1, n_references=1))[0], Matcher(family, 64))
        shifted = []
        for shift in (1.0, 5.0):  # towards noise, as the scheduler of a pipeline has it
            monkeypatch.setattr(family, "process", RectifiedFlow(shift))
            shifted.append(maps.matcher.similarity(maps.batch, 0.3))
        assert torch.equal(*shifted)

    def test_a_pair_without_references(self, family):
        (row,) = rows_of(make_pairs(1))
        assert "matched" not in PairMaps.of(row, Matcher(family, 64)).parts(0.5)

    def test_a_model_without_references(self):
        pipeline = PIPELINES["sd15"]()
        family = family_class([type(pipeline).__name__])(pipeline, PROMPT_KWARGS["sd15"])
        with pytest.raises(ValueError, match="has no tokens of references"):
            Matcher(family)
