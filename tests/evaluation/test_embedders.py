# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Tiny models on disk, held against their own calls on pixels that are prepared by hand."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, CLIPModel, Dinov2Model, ViTModel

from tests.fixtures.embedders import mean_colour, named_colour, save_clip, save_dino, save_dinov2
from tests.fixtures.pairs import random_image
from trl_focus.evaluation import Embedder


IMAGES = [random_image(np.random.default_rng(i), size) for i, size in enumerate([(300, 200), (64, 64), (200, 333)])]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIPS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "dino": save_dino(folder / "dino"),
        "dinov2": save_dinov2(folder / "dinov2"),
        "clip": save_clip(folder / "clip"),
    }


def prepared(image: PIL.Image.Image, shorter: int, mean, std) -> torch.Tensor:
    """Shorter side to a size, bicubic, the middle 224 x 224, normalized."""
    scale = shorter / min(image.size)
    size = [shorter if side == min(image.size) else int(side * scale) for side in image.size]
    image = image.resize(size, PIL.Image.Resampling.BICUBIC)
    left, top = ((side - 224) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
    return torch.from_numpy((pixels - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)[None]


def norm(vector: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(vector, dim=-1).numpy()


@pytest.mark.parametrize("name, model_class", [("dino", ViTModel), ("dinov2", Dinov2Model)])
def test_class_token(name, model_class, models):
    found = Embedder(models[name], device="cpu", batch_size=2).images(IMAGES)
    model = model_class.from_pretrained(models[name])
    with torch.no_grad():
        tokens = [model(pixel_values=prepared(image, 256, *IMAGENET)).last_hidden_state[:, 0] for image in IMAGES]
    assert found.shape == (3, 16) and found.dtype == np.float32
    assert found == pytest.approx(norm(torch.cat(tokens)), abs=1e-4)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)


def test_clip(models):
    embedder = Embedder(models["clip"], device="cpu", batch_size=2)
    model, tokenizer = CLIPModel.from_pretrained(models["clip"]), AutoTokenizer.from_pretrained(models["clip"])
    texts = ["a cat", "a dog in the snow", "x" * 500]
    with torch.no_grad():
        pixels = torch.cat([prepared(image, 224, *CLIPS) for image in IMAGES])
        images = model.visual_projection(model.vision_model(pixels).pooler_output)
        text = [model.text_model(**tokenizer(text, truncation=True, return_tensors="pt")) for text in texts]
        text = torch.cat([model.text_projection(each.pooler_output) for each in text])
    assert embedder.images(IMAGES) == pytest.approx(norm(images), abs=1e-4)
    assert embedder.texts(texts) == pytest.approx(norm(text), abs=1e-5)


def test_models_that_are_of_no_use_are_refused_at_once(models, tmp_path):
    config = BertConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="bert can't look at images: "):
        Embedder(str(tmp_path / "bert"), device="cpu")
    broken = Dinov2Model.from_pretrained(save_dinov2(tmp_path / "dinov2"))
    torch.nn.init.constant_(broken.layernorm.weight, float("nan"))
    broken.save_pretrained(tmp_path / "dinov2")
    with pytest.raises(ValueError, match="dinov2 gives vectors that are not finite"):
        Embedder(str(tmp_path / "dinov2"), device="cpu")


def test_model_without_texts(models):
    with pytest.raises(ValueError, match="reads no text"):
        Embedder(models["dino"], device="cpu").texts(["a cat"])


def test_colours_of_the_other_tests():
    red, green, yellow = (PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "yellow"))
    cosines = mean_colour([red, green, yellow]) @ mean_colour([red]).T
    assert cosines[:, 0] == pytest.approx([1, 0, 2**-0.5])
    assert named_colour(["a thing in red"]) == pytest.approx(mean_colour([red]))
