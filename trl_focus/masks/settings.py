# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from dataclasses import dataclass

from ..errors import InputError


CHOICES = {"by": ("name", "reference"), "missing": ("aside", "absent")}
# A detector's score and a cosine are no probabilities, and lie on different scales
CONFIDENCE = {"name": 0.2, "reference": 0.5}


@dataclass(frozen=True)
class MaskSettings:
    """
    How subjects are found.

    Args:
        by (`str`, *optional*, defaults to `"name"`):
            `"name"`: what `subjects` calls them is searched in every image. `"reference"`: chosen and rejected are
            searched for what looks like the references.
        confidence (`float`, *optional*):
            In [0, 1]: below it a subject counts as not found. Defaults to 0.2 by name and to 0.5 by reference.
        missing (`str`, *optional*, defaults to `"aside"`):
            What a subject that is not found in chosen or rejected makes of its row: `"aside"` sets it aside, `"absent"`
            says that the image does not show the subject.
        overlap (`float`, *optional*, defaults to `0.5`):
            Share in [0, 1] of the smaller of two subjects' masks that the other may cover.
        detector, segmenter, matcher (`str`, *optional*):
            Models by their ids on the Hub or their folders: names to boxes, boxes to masks, references to boxes.

    Raises:
        InputError: If a setting is none of these.
    """

    by: str = "name"
    confidence: float | None = None
    missing: str = "aside"
    overlap: float = 0.5
    detector: str = "google/owlv2-base-patch16-ensemble"
    segmenter: str = "facebook/sam-vit-base"
    matcher: str = "facebook/dinov2-base"

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"`{name}` is {getattr(self, name)!r}: choose {' or '.join(map(repr, choices))}")
        if self.confidence is None:
            object.__setattr__(self, "confidence", CONFIDENCE[self.by])
        for name in ("confidence", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"`{name}` is {getattr(self, name)}: it lies between 0 and 1")
