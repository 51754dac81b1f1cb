# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Models that turn images and texts into vectors. Whatever does, serves: a function from N images, or texts, to `(N, D)` unit
vectors.
"""

from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, BitImageProcessorPil, CLIPImageProcessorPil
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .metrics import unit


ImageEmbedder = Callable[[Sequence[PIL.Image.Image]], np.ndarray]
TextEmbedder = Callable[[Sequence[str]], np.ndarray]

DINO = "facebook/dino-vits16"
DINOV2 = "facebook/dinov2-base"
CLIP = "openai/clip-vit-base-patch32"


class Embedder:
    """
    A vision model of transformers. Of CLIP, the projected features count; of others (DINO, DINOv2), the class token of the
    last layer, after its norm.

    Images are prepared as the published numbers are: by Pillow, the shorter side to 224 pixels for CLIP and to 256 for
    others, bicubic, and of that the middle 224 x 224. So torchvision is not needed, and changes nothing where it is there.

    Args:
        name (`str`):
            Hub id or folder.
        device (`str` or `torch.device`, *optional*):
            Where it runs, from its first use on. Defaults to the GPU, if there is one.
        batch_size (`int`, *optional*, defaults to `32`):
            Images, or texts, in one forward.

    Raises:
        OSError: If there is no such model.
        ValueError: If it can't look at images, or gives no numbers.
    """

    def __init__(self, name: str, device: str | torch.device | None = None, batch_size: int = 32):
        self.name = name
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = batch_size
        try:
            # DINO's checkpoints have no pooler, nor is one used: without this, there is a warning of untrained weights
            kwargs = {"add_pooling_layer": False} if AutoConfig.from_pretrained(name).model_type == "vit" else {}
            self.model = AutoModel.from_pretrained(name, dtype=torch.float32, **kwargs).eval()
        except OSError as error:
            if error.errno is not None:
                raise
            raise OSError(f"the model {name} can't be loaded: {error}") from error  # it does not always say which
        self.reads_text = hasattr(self.model, "get_text_features")
        if self.reads_text:
            self.processor = CLIPImageProcessorPil.from_pretrained(name)
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        else:
            self.processor = BitImageProcessorPil(
                size={"shortest_edge": 256},
                crop_size=224,
                resample=PIL.Image.Resampling.BICUBIC,
                image_mean=IMAGENET_DEFAULT_MEAN,
                image_std=IMAGENET_DEFAULT_STD,
            )
        self._try()

    def _try(self):
        """Better now than after hours of drawing."""
        try:
            vector_1D = self.images([PIL.Image.new("RGB", (224, 224), "grey")])
        except Exception as error:  # each kind of model fails in its own way
            raise ValueError(f"the model {self.name} can't look at images: {error}") from error
        if not np.isfinite(vector_1D).all():
            raise ValueError(f"the model {self.name} gives vectors that are not finite: its weights are broken")
        self.model.to("cpu")  # until it is needed

    def images(self, images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """
        Unit vectors of images.

        Args:
            images (`Sequence[PIL.Image.Image]`):
                N RGB images of any sizes.

        Returns:
            `np.ndarray` of shape `(N, D)`.
        """
        return self._embed(images, self._image_features)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """
        Unit vectors of texts, each cut off after the tokens that the model reads (77 for CLIP).

        Args:
            texts (`Sequence[str]`):
                N texts.

        Returns:
            `np.ndarray` of shape `(N, D)`, comparable with those of images.

        Raises:
            ValueError: If the model reads no text.
        """
        if not self.reads_text:
            raise ValueError(f"{self.name} reads no text, so it can't compare images with prompts: give a CLIP model.")
        return self._embed(texts, self._text_features)

    @torch.no_grad()
    def _embed(self, inputs: Sequence, features: Callable[[Sequence], torch.Tensor]) -> np.ndarray:
        self.model.to(self.device)
        starts = range(0, len(inputs), self.batch_size)
        return unit(
            np.concatenate([features(inputs[start : start + self.batch_size]).cpu().numpy() for start in starts])
        )

    def _image_features(self, images: Sequence[PIL.Image.Image]) -> torch.Tensor:
        pixels_BCHW = self.processor([*images], return_tensors="pt")["pixel_values"].to(self.device)
        if self.reads_text:
            return self.model.get_image_features(pixel_values=pixels_BCHW).pooler_output
        return self.model(pixel_values=pixels_BCHW).last_hidden_state[:, 0]

    def _text_features(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer([*texts], padding=True, truncation=True, return_tensors="pt").to(self.device)
        return self.model.get_text_features(**tokens).pooler_output
