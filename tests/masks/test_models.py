# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Detector, segmenter and matcher with tiny models, against calls of these for one image at a time."""

import numpy as np
import PIL.Image
import pytest
import torch

from tests.fixtures.pairs import random_image
from trl_focus.masks.detect import detect
from trl_focus.masks.match import match, patch_features
from trl_focus.masks.models import load
from trl_focus.masks.segment import segment


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [random_image(rng, size) for size in ((60, 40), (32, 64), (60, 40))]


class TestDetect:
    @pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
    def test_boxes_are_pixels_of_the_image(self, kind, models, images):
        """There is something around the corner of each of 4x4 cells: of the image, or of the square OWLv2 pads it to."""
        found = detect(images[:1], ["a cat"], models[kind])[0]
        height = 15 if kind == "owlv2" else 10
        expected = {
            (15 * x - 7.5, height * (y - 0.5), min(15 * x + 7.5, 60), min(height * (y + 0.5), 40))
            for x in range(1, 5)
            for y in range(1, 5)
            if height * (y - 0.5) < 40
        }
        assert {tuple(round(2 * side) / 2 for side in each.box) for each in found} == expected
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)

    @pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
    def test_scores_are_the_names_own(self, kind, models, images):
        names = ["a cat", "an exceedingly long name of a dog", "a cat"]
        together = detect(images, names, models[kind], batch_size=2)
        for image, name, found in zip(images, names, together, strict=True):
            (alone,) = detect([image], [name], models[kind])
            torch.testing.assert_close([each.score for each in found], [each.score for each in alone])
        processor, model = load("detector", models[kind])
        inputs = processor(images=images[0], text=[["a cat"]], return_tensors="pt")
        scores = model(**inputs).logits.sigmoid().flatten()
        assert together[0][0].score == pytest.approx(scores.max().item(), abs=1e-5)
        assert together[0][0].score != pytest.approx(detect(images[:1], ["a dog"], models[kind])[0][0].score, abs=1e-4)


class TestSegment:
    def test_batches_are_as_images_alone(self, models, images):
        boxes = [[(0, 0, 30, 40), (30, 10, 60, 40)], [(4, 4, 20, 50)], [(10, 0, 50, 30), (0, 0, 20, 20)]]
        found = segment([*images, images[0]], [*boxes, []], models["sam"], batch_size=2)
        processor, model = load("segmenter", models["sam"])
        assert found[3] == []
        for image, asked, outlines in zip(images, boxes, found, strict=False):
            inputs = processor(
                images=image, input_boxes=[[list(map(float, box)) for box in asked]], return_tensors="pt"
            )
            inputs["input_boxes"] = inputs["input_boxes"].float()
            sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
            with torch.no_grad():
                outputs = model(**inputs, multimask_output=False)
            masks = processor.post_process_masks(outputs.pred_masks, *sizes)[0]
            assert len(outlines) == len(asked)
            for number, outline in enumerate(outlines):
                assert outline.mask_HW.shape == (image.height, image.width) and outline.mask_HW.dtype == bool
                assert (outline.mask_HW == masks[number, 0].numpy()).mean() > 0.99  # rounding on the edge
                score = outputs.iou_scores[0, number, 0].clamp(0, 1).item()
                assert outline.score == pytest.approx(score, abs=1e-5)

    def test_boxes_count(self, models, images):
        (one, other), _ = segment(images[:2], [[(0, 0, 20, 20), (30, 10, 60, 40)], []], models["sam"])
        assert one.score != other.score


def scene(*boxes, ground="grey", size=(64, 64)):
    image = PIL.Image.new("RGB", size, ground)
    for colour, box in boxes:
        image.paste(colour, box)
    return image


class TestMatch:
    def test_features_are_of_the_patch(self, models):
        features, grid = patch_features([scene(("red", (0, 8, 8, 16))), scene()], models["dinov2"], batch_size=1)
        assert grid == (8, 8) and features.shape == (2, 64, 16)
        alike = (features[0] - features[1]).abs().amax(dim=1) < 1e-4
        assert alike.logical_not().nonzero().flatten().tolist() == [8]  # row 1, column 0

    def test_finds_the_references_in_another_image(self, models):
        red, blue = (scene((colour, (16, 16, 48, 48))) for colour in ("red", "blue"))
        mask = np.zeros((64, 64), np.float32)
        mask[16:48, 16:48] = 1
        image = scene(("blue", (64, 16, 96, 48)), ("red", (0, 32, 48, 64)), size=(128, 64))
        (found,) = match([image], [[(red, mask), (blue, mask)]], [([0, 1], 2)], models["dinov2"])
        assert [[each.box for each in places] for places in found] == [[(0, 32, 48, 64)], [(64, 16, 96, 48)]]
        assert [places[0].score for places in found] == pytest.approx([1, 1], abs=1e-3)

    def test_two_of_a_kind_and_none(self, models):
        mask = np.ones((64, 64), np.float32)
        references = [(scene(ground="red"), mask), (scene(ground="lime"), mask)]
        image = scene(("red", (0, 0, 16, 16)), ("red", (40, 40, 64, 64)), ("blue", (48, 0, 64, 16)))
        (found,) = match([image], [references], [([0, 1], 2)], models["dinov2"])
        assert [each.box for each in found[0]] == [(0, 0, 16, 16), (40, 40, 64, 64)]
        assert max((each.score for each in found[1]), default=0) < 0.9 < found[0][1].score


def test_errors_are_for_people(tmp_path, models):
    with pytest.raises(OSError, match="the segmenter .*nowhere can't be loaded"):
        load("segmenter", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="Dinov2Config"):
        load("segmenter", models["dinov2"])
