# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Scores of images of plain colours, whose vectors are known: red, green and blue are orthogonal."""

import math

import numpy as np
import PIL.Image
import pytest

from tests.fixtures.embedders import mean_colour, named_colour
from trl_focus.evaluation import Instance, Item, Subject, published_scorer, subject_scorer
from trl_focus.evaluation.scorers import lower_is_better


HALF = 2**-0.5  # cosine of 45 degrees


def plain(*colours: str) -> PIL.Image.Image:
    """Stripes of 10 x 10 pixels, side by side."""
    image = PIL.Image.new("RGB", (10 * len(colours), 10))
    for i, colour in enumerate(colours):
        image.paste(colour, (10 * i, 0, 10 * i + 10, 10))
    return image


def asked(*colours: str, prompt: str = "all in red", photographs: dict[str, list[str]] | None = None) -> Item:
    references = tuple(map(plain, colours))
    subjects = [
        Subject(colour, (image,), photographs=tuple(map(plain, (photographs or {}).get(colour, []))))
        for colour, image in zip(colours, references, strict=True)
    ]
    return Item(0, prompt, references, tuple(subjects))


def stripes(*subjects: int | None) -> list[Instance]:
    return [Instance((10 * i, 0, 10 * i + 10, 10), subject=subject) for i, subject in enumerate(subjects)]


class TestPublished:
    score = staticmethod(published_scorer(mean_colour, mean_colour, named_colour))

    def test_reference_alone(self):
        found = self.score(plain("yellow"), asked("red", prompt="a thing in lime"), None)
        assert found == pytest.approx({"clip_t": HALF, "dino/reference": HALF, "clip_i/reference": HALF}, abs=1e-6)

    def test_mean_over_subjects(self):
        found = self.score(plain("red"), asked("red", "lime"), None)
        assert found["dino/reference"] == pytest.approx(0.5) and found["clip_t"] == pytest.approx(1)

    def test_all_photographs(self):
        photographs = {"red": ["red", "yellow"], "lime": ["blue"]}
        found = self.score(plain("red"), asked("red", "lime", photographs=photographs), None)
        assert found["dino/reference"] == pytest.approx(0.5)
        assert found["dino/photographs"] == pytest.approx(((1 + HALF) / 2 + 0) / 2)
        assert found["clip_i/photographs"] == found["dino/photographs"]

    def test_photographs_of_some_alone_are_no_setting(self):
        found = self.score(plain("red"), asked("red", "lime", photographs={"red": ["red"]}), None)
        assert found.keys() == {"clip_t", "dino/reference", "clip_i/reference"}

    def test_each_model_on_its_own(self):
        score = published_scorer(mean_colour, lambda images: mean_colour(images)[:, ::-1], named_colour)
        found = score(plain("red"), asked("red"), None)
        assert found["dino/reference"] == pytest.approx(1) and found["clip_i/reference"] == pytest.approx(1)
        assert found["clip_t"] == pytest.approx(0)  # the image's vector is blue's


class TestSubjects:
    score = staticmethod(subject_scorer(mean_colour))

    def test_whole_image(self):
        # the mean of red and green stripes is a dark yellow
        found = self.score(plain("red", "lime"), asked("red", "blue"), None)
        assert found == pytest.approx(
            {"identity": HALF / 2, "collapse/0.4": 0.5, "collapse/0.5": 0.5, "collapse/0.6": 0.5}, abs=1e-6
        )

    def test_each_cut_out(self):
        found = self.score(plain("red", "yellow"), asked("red", "lime"), stripes(0, 1))
        assert found["instances/identity"] == pytest.approx((1 + HALF) / 2)
        assert found["instances/found"] == 1
        assert found["instances/collapse/0.6"] == 0
        # red resembles green by 0, its own by 1; yellow resembles both as much
        assert found["instances/leakage"] == pytest.approx((-1 + 0) / 2, abs=1e-6)

    def test_who_is_who_is_found(self):
        image, item = plain("lime", "red"), asked("red", "lime")
        unknown, known = (self.score(image, item, stripes(*subjects)) for subjects in ((None, None), (0, 1)))
        assert unknown["instances/identity"] == pytest.approx(1) and unknown["instances/leaked"] == 0
        assert unknown["instances/leakage"] == pytest.approx(-1)
        assert known["instances/identity"] == pytest.approx(0) and known["instances/leaked"] == 1
        assert known["instances/leakage"] == pytest.approx(1) and known["instances/collapse/0.4"] == 1

    def test_one_is_missing(self):
        for instances in (stripes(None), stripes(0)):
            found = self.score(plain("red"), asked("red", "lime"), instances)
            assert found["instances/found"] == 0.5 == found["instances/identity"]
            assert found["instances/collapse/0.4"] == 0.5
            assert found["instances/leakage"] == pytest.approx(-1) and found["instances/leaked"] == 0

    def test_none_is_found(self):
        found = self.score(plain("red"), asked("red", "lime"), [])
        assert found["instances/found"] == 0 == found["instances/identity"] and found["instances/collapse/0.4"] == 1
        assert "instances/leakage" not in found

    def test_one_more_than_subjects(self):
        found = self.score(plain("blue", "red"), asked("red"), stripes(None, None))
        assert found["instances/identity"] == pytest.approx(1) and found["instances/found"] == 1
        assert "instances/leakage" not in found  # of one subject there is nobody to be taken for

    def test_masks(self):
        image = plain("red", "lime")
        mask = np.zeros((10, 20), np.float32)
        mask[:, :10] = 1
        subject = Subject("red", (image,), (PIL.Image.fromarray((255 * mask).astype(np.uint8)),))
        item = Item(0, "a", (image,), (subject,))
        found = self.score(plain("red", "blue"), item, [Instance((0, 0, 20, 10), mask)])
        # of the image, red and as much grey, as well as another half of grey around what is oblong; of the reference, red
        cosine = (255 + 3 * 128) / math.hypot(255 + 3 * 128, 3 * 128, 3 * 128)
        assert found["instances/identity"] == pytest.approx(cosine, abs=1e-3)

    def test_not_finite(self):
        score = subject_scorer(lambda images: np.full((len(images), 3), np.nan, np.float32))
        found = score(plain("red"), asked("red"), None)
        assert math.isnan(found["identity"]) and math.isnan(found["collapse/0.5"])
        with pytest.raises(ValueError):
            score(plain("red"), asked("red", "lime"), stripes(None, None))


def test_files_are_embedded_once(tmp_path):
    plain("red").save(tmp_path / "a.png")
    seen = []

    def embed(images):
        seen.extend(images)
        return mean_colour(images)

    path = tmp_path / "a.png"
    item = Item(0, "a", (path,), (Subject("a", (path,), (None,)),))
    score = subject_scorer(embed)
    assert score(plain("red"), item, None) == score(plain("red"), item, None)
    assert len(seen) == 3  # two images and a reference


def test_direction():
    assert [lower_is_better(name) for name in ("collapse/0.4", "instances/leaked", "instances/leakage")] == [True] * 3
    assert [lower_is_better(name) for name in ("identity", "clip_t", "instances/found")] == [False] * 3
