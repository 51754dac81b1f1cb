# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Checks of single rows, which collect what is wrong and raise nothing."""

import hashlib
import numbers
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from .images import IMAGE_MODES, decode_image, decode_mask, is_transparent
from .schema import OPTIONAL_COLUMNS, listed


class RowReport(NamedTuple):
    """
    What there is to know about a row before it is trained on. Sizes are (width, height) in pixels.

    Attributes:
        problems (`list[str]`):
            Sentences that say what is wrong, each beginning with the column's name in backticks. Empty for a good row.
        tie (`bool`):
            Whether chosen and rejected are the same picture.
        chosen_size, rejected_size (`tuple[int, int]`, *optional*):
            Size of either image; `None` if it can't be used.
        reference_sizes (`list[tuple[int, int]]`):
            Size of each reference that can be used.
        has_masks (`bool`):
            Whether the row has both `chosen_masks` and `rejected_masks`.
        mask_shares (`list[float]`):
            Share of its image that each of these masks covers; 0 for an absent subject.
        digests (`list[str]`):
            Of the prompt with its references, of chosen and of rejected: equal for equal content. Empty for a bad row.
        content (`str`):
            Digest of all of it. Empty for a bad row.
    """

    problems: list[str]
    tie: bool = False
    chosen_size: tuple[int, int] | None = None
    rejected_size: tuple[int, int] | None = None
    reference_sizes: Sequence[tuple[int, int]] = ()
    has_masks: bool = False
    mask_shares: Sequence[float] = ()
    digests: Sequence[str] = ()
    content: str = ""


def subject_names(row: Mapping[str, Any]) -> list[str] | None:
    """
    Names of a row's subjects, in the order of its masks.

    Args:
        row (`Mapping`):
            A row without problems.

    Returns:
        `list[str]`: Those of `subjects`, else those of `reference_subjects` in the order of their first appearance. `None`
        where nobody has named them.
    """
    if row.get("subjects") is not None:
        return list(row["subjects"])
    shown = row.get("reference_subjects") or []
    return list(dict.fromkeys(shown)) if shown and isinstance(shown[0], str) else None


def reference_subject_indices(row: Mapping[str, Any]) -> list[int]:
    """
    Index of the subject that each reference shows.

    Args:
        row (`Mapping`):
            A row without problems.

    Returns:
        `list[int]`: One index in [0, number of subjects) per reference. Names that `subjects` does not order count in
        the order of their first appearance.
    """
    entries = row.get("reference_subjects")
    if not entries:
        return list(range(len(row.get("references") or [])))
    names = subject_names(row)
    return [names.index(entry) if isinstance(entry, str) else int(entry) for entry in entries]


def subject_count(row: Mapping[str, Any]) -> int:
    """
    Number of subjects of a row: of its `subjects`, else of those its references show, else of its masks.

    Args:
        row (`Mapping`):
            A row without problems.
    """
    if row.get("subjects") is not None:
        return len(row["subjects"])
    if indices := reference_subject_indices(row):
        return max(indices) + 1
    return max(len(row.get(name) or []) for name in ("chosen_masks", "rejected_masks"))


def _decoded(label: str, value: Any, problems: list[str]) -> PIL.Image.Image | None:
    try:
        return decode_image(value)
    except (TypeError, ValueError) as error:
        problems.append(f"{label} can't be decoded: {error}")
        return None


def _picture(label: str, value: Any, problems: list[str]) -> PIL.Image.Image | None:
    """Decodes an image that has to be there."""
    if value is None:
        problems.append(f"{label} is missing (None), and has to be an image")
        return None
    image = _decoded(label, value, problems)
    if image is None:
        return None
    if 0 in image.size:
        problems.append("{} has no pixels: its size is {}x{}".format(label, *image.size))
        return None
    if image.mode not in IMAGE_MODES:
        problems.append(f"{label} has mode {image.mode!r}, whose values RGB would clip: save it with 8 bits a channel")
        return None
    if is_transparent(image):
        problems.append(
            f"{label} has transparent pixels, and what is behind them is not said: paste it on a background"
        )
        return None
    return image


def _mask(label: str, value: Any, image: PIL.Image.Image | None, problems: list[str]) -> np.ndarray | None:
    """A mask that can be used; its size is checked where its image can be."""
    if value is None or (mask := _decoded(label, value, problems)) is None:
        return None
    try:
        return decode_mask(mask, image.size if image else None)
    except ValueError as error:
        problems.append(f"{label} can't be used: {error}")
        return None


def _name_problems(names: Sequence) -> list[str]:
    if unnamed := [name for name in names if not isinstance(name, str)]:
        return [f"`subjects` holds {unnamed[0]!r}, which is not a name: give strings"]
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        return [f"`subjects` holds {repeated[0]!r} more than once: give each subject a name of its own"]
    return []


def _reference_subject_problems(entries: Sequence, names: Sequence | None) -> list[str]:
    problems = []
    for i, entry in enumerate(entries):
        label = f"`reference_subjects`[{i}]"
        if isinstance(entry, str):
            if names is not None and entry not in names:
                problems.append(f"{label} is {entry!r}, which is not among the `subjects` {listed(names)}")
        elif isinstance(entry, numbers.Integral) and not isinstance(entry, bool):
            if entry < 0 or (names is not None and entry >= len(names)):
                allowed = "is 0 or more" if names is None else f"lies in [0, {len(names)}), the length of `subjects`"
                problems.append(f"{label} is {entry}: an index {allowed}")
        else:
            problems.append(f"{label} is {entry!r}: give the subject's index, or its name")
    if not problems and names is None and len({isinstance(entry, str) for entry in entries}) > 1:
        problems.append("`reference_subjects` mixes indices and names, which needs `subjects` to order the names")
    return problems


def _length_problems(lists: Mapping[str, Sequence | None]) -> list[str]:
    """Problems of the subjects, and of the lists that go by subjects or by references."""
    references, names, shown = (lists[column] for column in ("references", "subjects", "reference_subjects"))
    n_references = len(references or [])
    problems = [
        f"`{column}` has length {len(lists[column])} and `references` length {n_references}: give one entry per reference"
        for column in ("reference_masks", "reference_subjects")
        if lists[column] is not None and len(lists[column]) != n_references
    ]
    if wrong := _name_problems(names or []) or _reference_subject_problems(shown or [], names):
        return problems + wrong  # with the subjects in doubt, other lengths would be a consequence and not a finding
    if names is not None and shown is None and n_references not in (0, len(names)):
        problems.append(
            f"`references` has length {n_references} and `subjects` length {len(names)}: add `reference_subjects` to say "
            "which subject each reference shows"
        )
    count = subject_count(lists)
    return problems + [
        f"`{column}` has length {len(lists[column])}, and the row's number of subjects is {count}: give one mask per "
        "subject, None where the subject is absent"
        for column in ("chosen_masks", "rejected_masks")
        if lists[column] is not None and len(lists[column]) != count
    ]


def _same_picture(chosen: PIL.Image.Image, rejected: PIL.Image.Image) -> bool:
    return np.array_equal(chosen.convert("RGB"), rejected.convert("RGB"))


def _digest(*parts: str | PIL.Image.Image | np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, str):
            content, size = part.encode(errors="replace"), ""
        elif isinstance(part, np.ndarray):
            content, size = part.tobytes(), part.shape
        else:
            content, size = part.convert("RGB").tobytes(), part.size
        digest.update(f"{len(content)} {size} ".encode() + content)
    return digest.hexdigest()


def inspect_row(row: Mapping[str, Any]) -> RowReport:
    """
    Looks at everything in a row, decoding each image once.

    Args:
        row (`Mapping`):
            A row of the preference schema, or anything else: that is a problem, too, and raises nothing.

    Returns:
        [`RowReport`]: Its problems and its sizes.
    """
    if not isinstance(row, Mapping):
        return RowReport([f"the row is of type {type(row).__name__}, not a dictionary of columns"])
    problems = []

    prompt = row.get("prompt")
    if not isinstance(prompt, str):
        problems.append(f"`prompt` is {type(prompt).__name__}, not a string")
    elif not prompt.strip():
        problems.append("`prompt` is empty: give the caption that the images were made for")
    chosen, rejected = (_picture(f"`{column}`", row.get(column), problems) for column in ("chosen", "rejected"))
    not_lists = [name for name in OPTIONAL_COLUMNS if not isinstance(row.get(name), list | tuple | None)]
    problems += [f"`{name}` is {type(row[name]).__name__}, not a list" for name in not_lists]
    lists = {name: None if name in not_lists else row.get(name) for name in OPTIONAL_COLUMNS}
    if not not_lists:
        problems += _length_problems(lists)

    references = [_picture(f"`references`[{i}]", value, problems) for i, value in enumerate(lists["references"] or [])]
    images = {
        "reference_masks": chain(references, repeat(None)),
        "chosen_masks": repeat(chosen),
        "rejected_masks": repeat(rejected),
    }
    masks = {
        name: [
            _mask(f"`{name}`[{i}]", mask, image, problems)
            for i, (mask, image) in enumerate(zip(lists[name] or [], covered, strict=False))
        ]
        for name, covered in images.items()
    }
    digests = [] if problems else [_digest(prompt, *references), _digest(chosen), _digest(rejected)]
    return RowReport(
        problems,
        tie=chosen is not None and rejected is not None and _same_picture(chosen, rejected),
        chosen_size=chosen and chosen.size,
        rejected_size=rejected and rejected.size,
        reference_sizes=[image.size for image in references if image],
        has_masks=lists["chosen_masks"] is not None and lists["rejected_masks"] is not None,
        mask_shares=[
            0.0 if mask_HW is None else float(mask_HW.mean())
            for mask_HW in masks["chosen_masks"] + masks["rejected_masks"]
        ],
        digests=digests,
        content="" if problems else _digest(*digests, *_annotations({**lists, **masks})),
    )


def _annotations(lists: Mapping[str, Any]) -> Iterator[str | np.ndarray]:
    """What a row without problems says of its images, masks as arrays."""
    for name in OPTIONAL_COLUMNS:
        for value in () if name == "references" else lists[name] or ():
            yield name
            yield value if isinstance(value, np.ndarray) else str(value)


def check_row(row: Mapping[str, Any]) -> list[str]:
    """
    All problems of a row, as sentences that begin with the column's name in backticks. Raises nothing, whatever the row.
    """
    return inspect_row(row).problems


def is_tie(row: Mapping[str, Any]) -> bool:
    """
    Whether chosen and rejected are the same picture: of one size, with the same RGB pixels.

    Args:
        row (`Mapping`):
            A row without problems.
    """
    return _same_picture(decode_image(row["chosen"]), decode_image(row["rejected"]))
