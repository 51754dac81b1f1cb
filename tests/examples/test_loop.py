# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What the loop finds and measures, on scenes that are rendered, so that the answer is known."""

import numpy as np
import PIL.Image
import pytest

from examples.sprites import loop
from examples.sprites.data import quality
from examples.sprites.pipeline import load_base
from examples.sprites.world import leaks, render, scene_masks
from trl_focus.data import check_row
from trl_focus.evaluation import subject_scorer


N = 3


@pytest.fixture(scope="module")
def asked():
    scenes, references = loop.asked("validation", N)
    return scenes, loop.items_of(scenes, references), loop.rows_of(scenes, references)


def test_subjects_are_found(asked):
    scenes, items, _ = asked
    find = loop.find_in_quadrants(scenes)
    for scene, item in zip(scenes, items, strict=True):
        found = find(PIL.Image.fromarray(render(scene)), item)
        assert [instance.subject for instance in found] == [0, 1]
        for instance, mask in zip(found, scene_masks(scene), strict=True):
            both, either = (instance.mask > 0) & (mask > 0), (instance.mask > 0) | (mask > 0)
            assert both.sum() > 0.85 * either.sum()


def test_a_missing_subject_is_not_found(asked):
    scenes, items, _ = asked
    scene = scenes[0]._replace(**{name: getattr(scenes[0], name)[:1] for name in ("subjects", "slots", "corners")})
    (found,) = loop.find_in_quadrants(scenes)(PIL.Image.fromarray(render(scene)), items[0])
    assert found.subject == 0


def test_leaks_are_measured(asked):
    scenes, items, _ = asked
    find = loop.find_in_quadrants(scenes)
    score = subject_scorer(loop.latent_embedder(load_base().vae))

    def identity(image: np.ndarray, item) -> float:
        image = PIL.Image.fromarray(image)
        return score(image, item, find(image, item))["instances/identity"]

    for scene, item in zip(scenes, items, strict=True):
        right = identity(render(scene), item)
        wrong = [identity(render(leaked), item) for which in (0, 1) for leaked in leaks(scene, which)]
        assert right > 0.8 and right > max(wrong)


def test_rows_and_scores(asked):
    scenes, items, rows = asked
    images = render(scenes[0]), render(scenes[1])
    row = {**rows[0], "chosen": PIL.Image.fromarray(images[0]), "rejected": PIL.Image.fromarray(images[1])}
    assert check_row(row) == []
    exact = loop.exact_scorer(scenes)
    found = [exact(PIL.Image.fromarray(image), items[0], None) for image in images]
    assert found[0]["exact/identity"] == 1 == found[0]["exact/quality"]
    assert found[1]["exact/quality"] == quality(images[1], scenes[0]) < 1
