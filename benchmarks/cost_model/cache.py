# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Bytes on disk of what is computed once for each pair, in the files of `encode_once` and `precompute_ref_errors`."""

from dataclasses import dataclass

from .models import Model


@dataclass(frozen=True)
class Cache:
    """
    Bytes of one pair.

    Attributes:
        images (`int`):
            Latents of chosen and rejected image.
        references (`int`):
            Latents of its references.
        prompt (`int`):
            Embedding of its prompt, with what goes with it.
        masks (`int`):
            Masks of its subjects on both images, and of each reference, in fp32.
        errors (`int`):
            The reference's errors at each token of both images, in fp32, for each drawn noise and level.
    """

    images: int
    references: int
    prompt: int
    masks: int
    errors: int

    @property
    def total(self) -> int:
        return self.images + self.references + self.prompt + self.masks + self.errors


def cache(model: Model, sides: list[int], draws: int = 0, subjects: int = 0, bytes_each: int = 2) -> Cache:
    """
    Bytes of one pair.

    Args:
        sides (`list[int]`):
            Of the square target and the square references, in pixels.
        draws (`int`, *optional*, defaults to `0`):
            Drawn (noise, level) pairs for which the reference's errors are stored.
        subjects (`int`, *optional*, defaults to `0`):
            Subjects that have masks.
        bytes_each (`int`, *optional*, defaults to `2`):
            Bytes of a number of the latents and the embeddings.
    """
    target, references = model.tokens(sides[:1]), model.tokens(sides[1:])
    tokens, features = model.prompt
    return Cache(
        images=bytes_each * 2 * target * model.channels,
        references=bytes_each * references * model.channels,
        prompt=bytes_each * (tokens * features + model.pooled) + 8 * tokens * model.positions,
        masks=4 * (2 * subjects * target + bool(subjects) * references),
        errors=4 * draws * 2 * target,
    )
