# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What is measured on one image, as pure functions of unit vectors and of their cosines. docs/evaluation.md has the formulas.

Array names carry their shape: N images or texts, D features, I instances in an image, S subjects that were asked for.
"""

from collections.abc import Sequence

import numpy as np


COLLAPSE_THRESHOLDS = (0.4, 0.5, 0.6)  # of the Subject Collapse Rate, arXiv 2603.26078


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """
    Vectors scaled to length 1, in float32. One of length 0 has no direction, and becomes NaN.

    Args:
        vectors_ND (`np.ndarray` of shape `(N, D)`):
            Any vectors.
    """
    vectors_ND = np.asarray(vectors_ND, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def subject_similarity(images_ID: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """
    How much each image resembles each subject: the mean cosine to the images of that subject.

    Args:
        images_ID (`np.ndarray` of shape `(I, D)`):
            Unit vectors of images, or of crops of one.
        references (`Sequence[np.ndarray]`):
            For each subject the unit vectors of its images, of shape `(images, D)`, at least one.

    Returns:
        `np.ndarray` of shape `(I, S)`, in [-1, 1].
    """
    return np.stack([(images_ID @ vectors.T).mean(axis=1) for vectors in references], axis=1)


def assign(similarity_IS: np.ndarray) -> list[int | None]:
    """
    Which instance stands for which subject: one to one, so that the sum of their similarities is greatest (the Hungarian
    method).

    Args:
        similarity_IS (`np.ndarray` of shape `(I, S)`):
            From [`subject_similarity`]; there may be more or fewer instances than subjects.

    Returns:
        `list[int | None]` of length S: The instance of each subject; `None` for a subject that is left without one.

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If a similarity is NaN.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(
            "Which instance stands for which subject is found with scipy: `pip install trl-focus[evaluate]`."
        ) from error
    instances, subjects = linear_sum_assignment(similarity_IS, maximize=True)
    found = dict(zip(subjects.tolist(), instances.tolist(), strict=True))
    return [found.get(subject) for subject in range(similarity_IS.shape[1])]


def identity(similarity_IS: np.ndarray, instance_of: Sequence[int | None]) -> np.ndarray:
    """
    How much each subject's instance resembles it; 0 for a subject without one, so that leaving it out earns nothing.

    Args:
        similarity_IS (`np.ndarray` of shape `(I, S)`):
            From [`subject_similarity`].
        instance_of (`Sequence[int | None]` of length S):
            The instance of each subject.

    Returns:
        `np.ndarray` of shape `(S,)`, in [-1, 1].
    """
    return np.array(
        [
            0.0 if instance is None else similarity_IS[instance, subject]
            for subject, instance in enumerate(instance_of)
        ],
        dtype=np.float32,
    )


def collapse_rate(identity_S: np.ndarray, threshold: float) -> float:
    """
    Subject Collapse Rate (arXiv 2603.26078): the share of the subjects whose similarity lies below a threshold.

    Args:
        identity_S (`np.ndarray` of shape `(S,)`):
            Similarity of each subject's reference to the image, or to its instance in it.
        threshold (`float`):
            The paper's are `COLLAPSE_THRESHOLDS`.

    Returns:
        `float`: In [0, 1]. NaN where a similarity is.
    """
    return float("nan") if np.isnan(identity_S).any() else float((identity_S < threshold).mean())


def leakage(similarity_IS: np.ndarray, instance_of: Sequence[int | None]) -> np.ndarray:
    """
    How much more an instance resembles another subject than its own: its similarity to the most similar of the others,
    minus that to its own. Above 0 it looks like somebody else.

    Args:
        similarity_IS (`np.ndarray` of shape `(I, S)`):
            From [`subject_similarity`], with at least two subjects.
        instance_of (`Sequence[int | None]` of length S):
            The instance of each subject.

    Returns:
        `np.ndarray`: One value in [-2, 2] for each subject that has an instance, in their order.
    """
    margins = [
        np.delete(similarity_IS[instance], subject).max() - similarity_IS[instance, subject]
        for subject, instance in enumerate(instance_of)
        if instance is not None
    ]
    return np.array(margins, dtype=np.float32)
