# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Scorers of an image. Each is a function of the image, of what was asked for, and of where the subjects are (`None` if nobody
knows), to named numbers; any function of one's own may stand beside these.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from .benchmark import Item, Source, open_image, open_mask
from .embedders import ImageEmbedder, TextEmbedder
from .instances import Instance, cut_out, mask_box
from .metrics import COLLAPSE_THRESHOLDS, assign, collapse_rate, identity, leakage, subject_similarity


Scorer = Callable[[PIL.Image.Image, Item, Sequence[Instance] | None], Mapping[str, float]]

# Of these, less is better
LOWER_IS_BETTER = ("collapse", "leak", "error")


def lower_is_better(name: str) -> bool:
    """Whether a score of this name is the better the lower it is."""
    return any(word in name for word in LOWER_IS_BETTER)


class _References:
    """Vectors of reference images. A file is embedded once, however many prompts there are for it."""

    def __init__(self, embed: ImageEmbedder):
        self.embed = embed
        self.known: dict[tuple[Path, Path | None], np.ndarray] = {}

    def __call__(self, sources: Sequence[Source], masks: Sequence[Source | None] = ()) -> np.ndarray:
        """Unit vectors of images, or of what masks leave of them, of shape `(images, D)`."""
        masks = masks or [None] * len(sources)
        return np.stack([self._vector(source, mask) for source, mask in zip(sources, masks, strict=True)])

    def _vector(self, source: Source, mask: Source | None) -> np.ndarray:
        from_files = isinstance(source, Path) and isinstance(mask, Path | None)
        if from_files and (source, mask) in self.known:
            return self.known[source, mask]
        image = open_image(source)
        if mask is not None:
            mask_HW = open_mask(mask, image.size)
            image = cut_out(image, mask_box(mask_HW), mask_HW)
        vector = self.embed([image])[0]
        if from_files:
            self.known[source, mask] = vector
        return vector


def published_scorer(dino: ImageEmbedder, clip_images: ImageEmbedder, clip_texts: TextEmbedder) -> Scorer:
    """
    The scores of DreamBooth (arXiv 2208.12242), as UNO and PatchDPO count them, of whole images:

    - clip_t: cosine of the image and its prompt.
    - dino/reference, clip_i/reference: cosine of the image and the references alone ("Kosmos-G setting").
    - dino/photographs, clip_i/photographs: mean cosine of the image and all images of the subject, where others are known of.

    Of several subjects, the mean over them.

    Args:
        dino (`ImageEmbedder`):
            DINO ViT-S/16, for numbers that are comparable with published ones.
        clip_images, clip_texts (`ImageEmbedder`, `TextEmbedder`):
            CLIP ViT-B/32.
    """
    references = {"dino": _References(dino), "clip_i": _References(clip_images)}
    texts: dict[str, np.ndarray] = {}

    def score(image: PIL.Image.Image, item: Item, instances: Sequence[Instance] | None) -> dict[str, float]:
        vectors = {"dino": dino([image]), "clip_i": clip_images([image])}
        if item.prompt not in texts:
            texts[item.prompt] = clip_texts([item.prompt])
        scores = {"clip_t": float((vectors["clip_i"] @ texts[item.prompt].T).item())}
        compared = {"reference": [subject.references for subject in item.subjects]}
        if all(subject.photographs for subject in item.subjects):
            compared["photographs"] = [subject.photographs for subject in item.subjects]
        for name, vector_1D in vectors.items():
            for setting, images in compared.items():
                similarity_1S = subject_similarity(vector_1D, [references[name](sources) for sources in images])
                scores[f"{name}/{setting}"] = float(similarity_1S.mean())
        return scores

    return score


def subject_scorer(embed: ImageEmbedder) -> Scorer:
    """
    Whether each subject kept its identity, of the whole image and, where it is known where the subjects are, of each of them:

    - identity: mean over the subjects of the cosine of the whole image and the subject's references.
    - collapse/0.4, /0.5, /0.6: share of the subjects of which that is less (arXiv 2603.26078).
    - instances/found: share of the subjects that have an instance.
    - instances/identity, instances/collapse/...: the same as above, of each subject's instance; 0 where it has none.
    - instances/leakage: mean over the instances of their similarity to the most similar other subject, minus that to their
      own; of at least two subjects.
    - instances/leaked: share of the instances of which that is above 0.

    Args:
        embed (`ImageEmbedder`):
            DINOv2, or any other.
    """
    references = _References(embed)

    def score(image: PIL.Image.Image, item: Item, instances: Sequence[Instance] | None) -> dict[str, float]:
        whole = [references(subject.references) for subject in item.subjects]
        identity_S = subject_similarity(embed([image]), whole)[0]
        scores = _identity_scores("", identity_S)
        if instances is None:
            return scores
        if not instances:
            similarity_IS = np.zeros((0, len(item.subjects)), dtype=np.float32)
        else:
            crops = [cut_out(image, instance.box, instance.mask) for instance in instances]
            masked = [references(subject.references, subject.masks) for subject in item.subjects]
            similarity_IS = subject_similarity(embed(crops), masked)
        instance_of = _instance_of(similarity_IS, instances)
        scores["instances/found"] = sum(found is not None for found in instance_of) / len(instance_of)
        scores |= _identity_scores("instances/", identity(similarity_IS, instance_of))
        if len(item.subjects) > 1 and instances:
            margins = leakage(similarity_IS, instance_of)
            scores["instances/leakage"] = float(margins.mean())
            scores["instances/leaked"] = float("nan") if np.isnan(margins).any() else float((margins > 0).mean())
        return scores

    return score


def _instance_of(similarity_IS: np.ndarray, instances: Sequence[Instance]) -> list[int | None]:
    known = {instance.subject: number for number, instance in enumerate(instances) if instance.subject is not None}
    if known:
        return [known.get(subject) for subject in range(similarity_IS.shape[1])]
    return assign(similarity_IS)


def _identity_scores(prefix: str, identity_S: np.ndarray) -> dict[str, float]:
    rates = {
        f"{prefix}collapse/{threshold}": collapse_rate(identity_S, threshold) for threshold in COLLAPSE_THRESHOLDS
    }
    return {f"{prefix}identity": float(identity_S.mean()), **rates}
