# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
References to boxes: where an image's patches look like the subject of a reference, by DINOv2.

Tensor names carry their shape: N images, R references, H W the grid of patches, P = H * W, D features.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from ..data.collator import area_average
from ..focus.correspondence import prototypes, similarity
from .boxes import Found
from .models import load


LEAST_AREA = 0.25  # of a subject's largest place: smaller ones are not told from noise


@torch.no_grad()
def patch_features(
    images: Sequence[PIL.Image.Image], matcher: str, batch_size: int = 8
) -> tuple[torch.Tensor, tuple[int, int]]:
    """
    Features of the patches of images, each stretched to the square that the model was trained on.

    Args:
        images (`Sequence[PIL.Image.Image]`):
            N RGB images, at least one.
        matcher (`str`):
            Id on the Hub, or a folder, of a DINOv2 or another vision transformer whose patches come last.
        batch_size (`int`, *optional*, defaults to `8`):
            Images in one forward pass.

    Returns:
        `tuple[torch.Tensor, tuple[int, int]]`: fp32 of shape `(N, P, D)` on the CPU, row by row, and the grid's height and
        width.

    Raises:
        OSError, ValueError, ImportError: If the model can't be loaded.
    """
    processor, model = load("matcher", matcher)
    side, cells = model.config.image_size, model.config.image_size // model.config.patch_size
    features = []
    for start in range(0, len(images), batch_size):
        pixels = processor(
            list(images[start : start + batch_size]),
            size={"height": side, "width": side},
            do_center_crop=False,  # DINOv2's own processor cuts the borders off
            return_tensors="pt",
        )
        states_NSD = model(**pixels.to(model.device)).last_hidden_state
        features.append(states_NSD[:, -cells * cells :].float().cpu())  # before them stand a class token and registers
    return torch.cat(features), (cells, cells)


def otsu(values: torch.Tensor) -> float:
    """
    The value that splits others best in two, from which on they are of the upper part: it makes the means of the parts
    differ most, weighted by their sizes ([Otsu 1979](https://doi.org/10.1109/TSMC.1979.4310076)).

    Args:
        values (`torch.Tensor` of any shape):
            At least one value. Where all are equal, all are of the upper part.
    """
    ordered_n = values.flatten().double().sort().values
    total = len(ordered_n)
    low_n = torch.arange(1, total)
    below_n = ordered_n.cumsum(0)[:-1]
    above_n = ordered_n.sum() - below_n
    spread_n = low_n * (total - low_n) * (above_n / (total - low_n) - below_n / low_n) ** 2
    spread_n = spread_n.where(ordered_n[1:] > ordered_n[:-1], -1)  # equal values are not torn apart
    if total == 1 or spread_n.max() < 0:
        return ordered_n[0].item()
    return ordered_n[1:][spread_n.argmax()].item()


def components(cells_HW: torch.Tensor, values_HW: torch.Tensor) -> Iterator[torch.Tensor]:
    """
    Connected parts of a region, also over corners, the one with the largest value first.

    Args:
        cells_HW (`torch.Tensor` of shape `(H, W)`, bool):
            The region.
        values_HW (`torch.Tensor` of shape `(H, W)`):
            What orders the parts.

    Yields:
        `torch.Tensor` of shape `(H, W)`, bool.
    """
    left_HW = cells_HW.clone()
    while left_HW.any():
        part_HW = torch.zeros_like(left_HW)
        part_HW.view(-1)[values_HW.where(left_HW, -torch.inf).argmax()] = True
        size = 0
        while part_HW.sum() > size:
            size = part_HW.sum()
            part_HW = (F.max_pool2d(part_HW[None, None].float(), 3, 1, 1)[0, 0] > 0) & left_HW
        left_HW &= ~part_HW
        yield part_HW


def places(
    features_PD: torch.Tensor,
    prototypes_RD: torch.Tensor,
    subjects_R: Sequence[int],
    subjects: int,
    grid: tuple[int, int],
    size: tuple[int, int],
) -> list[list[Found]]:
    """
    Where an image may show each subject: the connected patches whose similarity to its references lies in the upper part,
    by [`otsu`], and is not below that to another subject's [our decision].

    Args:
        features_PD (`torch.Tensor` of shape `(P, D)`):
            Features of the image's patches, row by row.
        prototypes_RD (`torch.Tensor` of shape `(R, D)`):
            Mean feature of each reference's subject.
        subjects_R (`Sequence[int]`):
            Which subject each reference shows, in [0, subjects).
        subjects (`int`):
            Number of subjects. One without references is nowhere.
        grid (`tuple[int, int]`):
            Height and width of the grid of patches.
        size (`tuple[int, int]`):
            Width and height of the image in pixels.

    Returns:
        `list[list[Found]]`: For each subject its places, the surest first. The score is the cosine of the place's mean
        feature with the nearest prototype, at least 0.
    """
    similarity_RHW = similarity(features_PD[None], prototypes_RD[None], grid)[0]
    shown_R = torch.tensor(subjects_R)
    found: list[list[Found]] = []
    for subject in range(subjects):
        own_R = shown_R == subject
        if not own_R.any():
            found.append([])
            continue
        own_HW = similarity_RHW[own_R].amax(dim=0)
        region_HW = own_HW >= otsu(own_HW)
        if not own_R.all():
            region_HW &= own_HW >= similarity_RHW[~own_R].amax(dim=0)
        parts = list(components(region_HW, own_HW))
        largest = max((part_HW.sum() for part_HW in parts), default=0)
        kept = [
            Found(_box(part_HW, size), _cosine(features_PD[part_HW.flatten()], prototypes_RD[own_R]))
            for part_HW in parts
            if part_HW.sum() >= LEAST_AREA * largest
        ]
        found.append(sorted(kept, key=lambda each: each.score, reverse=True))
    return found


def _box(part_HW: torch.Tensor, size: tuple[int, int]) -> tuple[float, float, float, float]:
    rows, columns = (part_HW.any(dim=dim).nonzero().flatten() for dim in (1, 0))
    height, width = size[1] / part_HW.shape[0], size[0] / part_HW.shape[1]
    return (
        columns[0].item() * width,
        rows[0].item() * height,
        (columns[-1].item() + 1) * width,
        (rows[-1].item() + 1) * height,
    )


def _cosine(features_nD: torch.Tensor, prototypes_RD: torch.Tensor) -> float:
    return F.cosine_similarity(features_nD.mean(dim=0), prototypes_RD, dim=1).max().clamp(0, 1).item()


def match(
    images: Sequence[PIL.Image.Image],
    references: Sequence[Sequence[tuple[PIL.Image.Image, np.ndarray]]],
    subjects: Sequence[tuple[Sequence[int], int]],
    matcher: str,
    batch_size: int = 8,
) -> list[list[list[Found]]]:
    """
    Where each image may show the subjects of its references: see [`places`].

    Args:
        images (`Sequence[PIL.Image.Image]`):
            N RGB images.
        references (`Sequence[Sequence[tuple[PIL.Image.Image, np.ndarray]]]`):
            For each image its references, RGB, each with the mask of its subject, of shape `(H, W)` in [0, 1]. One that
            several images share is looked at once.
        subjects (`Sequence[tuple[Sequence[int], int]]`):
            For each image which subject each of its references shows, and the number of subjects.
        matcher (`str`), batch_size (`int`, *optional*, defaults to `8`):
            As for [`patch_features`].

    Returns:
        `list[list[list[Found]]]`: For each image, for each subject, its places.
    """
    known = {id(image): image for image in images} | {id(image): image for row in references for image, _ in row}
    if not known:
        return []
    features_NPD, grid = patch_features(list(known.values()), matcher, batch_size)
    features = dict(zip(known, features_NPD, strict=True))
    found = []
    for image, row, (shown, count) in zip(images, references, subjects, strict=True):
        if not row:
            found.append([[] for _ in range(count)])
            continue
        masks = [area_average(mask_HW, (0, 0, *mask_HW.shape[::-1]), grid) for _, mask_HW in row]
        pooled = prototypes(
            [features[id(reference)][None] for reference, _ in row],
            [torch.from_numpy(mask_HW).float().flatten()[None] for mask_HW in masks],
        )[0]
        found.append(places(features[id(image)], pooled, shown, count, grid, image.size))
    return found
