# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
The preference schema: one row is one pair of images for one prompt, with optional references, subjects and masks.

| column | holds |
|---|---|
| `prompt` | the caption both images were made for |
| `chosen`, `rejected` | the preferred image and the other one |
| `references` | list of reference images, of any length |
| `subjects` | list of names; they give the order of the masks (where absent, the references do) |
| `reference_subjects` | for each reference its subject, as an index or as a name; one to one where absent |
| `chosen_masks`, `rejected_masks` | for each subject its mask in that image; black or None: the subject is absent |
| `reference_masks` | for each reference the mask of its subject |

All but the first three are optional: a column may be missing, and None in place of a list says that the row has none.
"""

import logging
import numbers
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
from datasets import Features, Image, List, Value

from .. import __version__


logger = logging.getLogger(__name__)

REQUIRED_COLUMNS = ("prompt", "chosen", "rejected")
OPTIONAL_COLUMNS = (
    "references",
    "reference_masks",
    "chosen_masks",
    "rejected_masks",
    "subjects",
    "reference_subjects",
)
COLUMNS = REQUIRED_COLUMNS + OPTIONAL_COLUMNS

# To be given to `Dataset.from_list` and the like where types can't be inferred, as with None inside a list of images.
FEATURES = Features(
    {
        "prompt": Value("string"),
        "chosen": Image(),
        "rejected": Image(),
        "references": List(Image()),
        "reference_masks": List(Image()),
        "chosen_masks": List(Image()),
        "rejected_masks": List(Image()),
        "subjects": List(Value("string")),
        "reference_subjects": List(Value("int64")),
    }
)

MASK_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
IMAGE_MODES = (*MASK_MODES, "PA", "RGBX", "CMYK", "YCbCr", "HSV")  # 8 bits: RGB conversion clips the deeper ones

TIE = "`chosen` and `rejected` are the same picture: a tie teaches nothing; pass ties='drop' to leave such rows out"

SHOWN = 10  # how many of the rows, names or files in question a message names

_KINDS = {Image.dtype: "images", "string": "strings", "int64": "indices or names of subjects"}
_REPORT_FEATURES = Features(
    {
        "row": Value("int64"),
        "problems": List(Value("string")),
        "tie": Value("bool"),
        "width": Value("int32"),
        "height": Value("int32"),
        "rejected_width": Value("int32"),
        "rejected_height": Value("int32"),
        "reference_sizes": List(List(Value("int32"))),
        "has_masks": Value("bool"),
    }
)


def listed(values: Iterable) -> str:
    """The first of these values, for a message, and how many there are besides."""
    values = list(values)
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(repr, values[:SHOWN])) + more


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
    """

    problems: list[str]
    tie: bool = False
    chosen_size: tuple[int, int] | None = None
    rejected_size: tuple[int, int] | None = None
    reference_sizes: Sequence[tuple[int, int]] = ()
    has_masks: bool = False


def decode_image(value: PIL.Image.Image | Mapping[str, Any]) -> PIL.Image.Image:
    """
    Decodes an image and turns it upright by its EXIF orientation.

    Args:
        value (`PIL.Image.Image` or `Mapping`):
            An image, or `{"bytes", "path"}` as [`datasets.Image`] stores it.

    Returns:
        `PIL.Image.Image`: The loaded image in its own mode.

    Raises:
        TypeError: If the value is neither.
        ValueError: If it can't be decoded.
    """
    if not isinstance(value, PIL.Image.Image | Mapping):
        raise TypeError(
            f"expected an image or a dictionary with 'bytes' and 'path', got {type(value).__name__}. Paths and bytes "
            "become images with `dataset.cast_column` and `datasets.Image()`"
        )
    try:
        if isinstance(value, Mapping):
            image = Image().decode_example({key: value.get(key) for key in ("bytes", "path")})
        else:
            image = value
        image.load()
        if PIL.Image.ExifTags.Base.Orientation in image.getexif():
            image = PIL.ImageOps.exif_transpose(image)
    except PIL.UnidentifiedImageError as error:
        path = value.get("path") if isinstance(value, Mapping) else None
        raise ValueError(f"{path or 'the content'} is not an image file that Pillow can read") from error
    except Exception as error:  # a damaged file can raise anything from inside its format's reader
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return image


def mask_to_array(value: PIL.Image.Image | Mapping[str, Any] | None) -> np.ndarray | None:
    """
    Reads a mask as the luminance of its image.

    Args:
        value (`PIL.Image.Image` or `Mapping`, *optional*):
            Anything that [`decode_image`] takes, of mode 1, L, LA, P, RGB or RGBA.

    Returns:
        `np.ndarray` of shape `(H, W)`, float32 in [0, 1], or `None` for `None`.

    Raises:
        TypeError: If the value is not an image.
        ValueError: If it can't be decoded, has another mode, or holds 0 and 1 in place of 0 and 255.
    """
    if value is None:
        return None
    image = decode_image(value)
    if image.mode not in MASK_MODES:
        raise ValueError(f"it has mode {image.mode!r}, and masks have one of {', '.join(MASK_MODES)}")
    mask = np.asarray(image.convert("L"))
    if mask.max(initial=0) == 1:
        raise ValueError(
            "its largest value is 1 of 255, so all of it would count as nearly absent. Multiply it by 255, or save it "
            "with mode '1'"
        )
    return mask.astype(np.float32) / 255


def decode_mask(
    value: PIL.Image.Image | Mapping[str, Any] | None, size: tuple[int, int] | None = None
) -> np.ndarray | None:
    """
    Reads a mask as [`mask_to_array`] does, and checks that it covers its image.

    Args:
        value (`PIL.Image.Image` or `Mapping`, *optional*):
            The mask; `None` for an absent subject.
        size (`tuple[int, int]`, *optional*):
            The image's (width, height) in pixels.

    Returns:
        `np.ndarray` of shape `(H, W)`, float32 in [0, 1], or `None` for `None`.

    Raises:
        TypeError: If the value is not an image.
        ValueError: If it can't be read as a mask, or its size is not the image's.
    """
    mask = mask_to_array(value)
    if mask is not None and size is not None and mask.shape != size[::-1]:
        raise ValueError(
            "its size is {}x{} pixels and its image's {}x{}. Masks lie on their image pixel by pixel: save it at the "
            "image's size".format(*mask.shape[::-1], *size)
        )
    return mask


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
    names = row.get("subjects")
    if names is None:
        names = list(dict.fromkeys(entries))
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


def _fits(feature: Any, wanted: Any) -> bool:
    """Whether a column of this feature can be read as the wanted one. Null is the type of nothing but None."""
    if feature == Value("null"):
        return True
    if isinstance(wanted, List):
        return isinstance(feature, List | datasets.LargeList) and _fits(feature.feature, wanted.feature)
    if isinstance(wanted, Image):
        return isinstance(feature, Image)
    # An index of a subject may be its name.
    kinds = ("string", "large_string", "int", "uint") if wanted == Value("int64") else ("string", "large_string")
    return isinstance(feature, Value) and feature.dtype.startswith(kinds)


def require_dataset(dataset: Any) -> None:
    """
    Raises:
        TypeError: If this is not one split of a `datasets` dataset.
    """
    if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise TypeError(f"this holds several splits: pass one of them, e.g. dataset[{next(iter(dataset), 'train')!r}]")
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        raise TypeError(
            f"expected a `datasets.Dataset` or `datasets.IterableDataset`, got {type(dataset).__name__}: see "
            "`datasets.Dataset.from_list` and `datasets.IterableDataset.from_generator`"
        )


def check_columns(dataset: datasets.Dataset | datasets.IterableDataset) -> None:
    """
    Checks the names and types of a dataset's columns. What a stream without features has is not known before its rows.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Rows of the preference schema.

    Raises:
        ValueError: If a required column is missing.
        TypeError: If a column has a type of another kind, or if this is not a dataset.
    """
    require_dataset(dataset)
    if dataset.features is None:
        return
    missing = [column for column in REQUIRED_COLUMNS if column not in dataset.features]
    if missing:
        raise ValueError(
            f"the dataset lacks the columns {listed(missing)}; it has {listed(dataset.features)}. Columns of another "
            f'name are renamed with `dataset.rename_column("name", "{missing[0]}")`'
        )
    for column, wanted in FEATURES.items():
        if column in dataset.features and not _fits(dataset.features[column], wanted):
            element = wanted.feature if isinstance(wanted, List) else wanted
            kind = _KINDS[element.dtype]
            code = "datasets.Image()" if isinstance(element, Image) else f'datasets.Value("{element.dtype}")'
            if isinstance(wanted, List):
                kind, code = f"lists of {kind}", f"datasets.List({code})"
            raise TypeError(
                f"`{column}` has the type {dataset.features[column]} and should hold {kind}. Cast it with "
                f'`dataset.cast_column("{column}", {code})`'
            )


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
    return image


def _check_mask(label: str, value: Any, image: PIL.Image.Image | None, problems: list[str]) -> None:
    """Checks a mask, and its size where its image can be used."""
    if value is None or (mask := _decoded(label, value, problems)) is None:
        return
    try:
        decode_mask(mask, image.size if image else None)
    except ValueError as error:
        problems.append(f"{label} can't be used: {error}")


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
    for name, covered in images.items():
        for i, (mask, image) in enumerate(zip(lists[name] or [], covered, strict=False)):
            _check_mask(f"`{name}`[{i}]", mask, image, problems)

    return RowReport(
        problems,
        tie=chosen is not None and rejected is not None and _same_picture(chosen, rejected),
        chosen_size=chosen and chosen.size,
        rejected_size=rejected and rejected.size,
        reference_sizes=[image.size for image in references if image],
        has_masks=lists["chosen_masks"] is not None and lists["rejected_masks"] is not None,
    )


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


def _problem_error(problems: list[tuple[int, str]]) -> ValueError:
    lines = [f"row {row}: {problem}" for row, problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"... and {len(problems) - SHOWN} more")
    first = f"{len(problems)} problem{'s' * (len(problems) > 1)} in the preference pairs (rows count from 0):"
    return ValueError("\n".join([first, *lines, "Nothing was trained. Correct these rows or leave them out."]))


def check_streamed_row(row: Mapping[str, Any], number: int) -> RowReport:
    """
    Inspects a row of a stream.

    Args:
        row (`Mapping`):
            A row of the preference schema.
        number (`int`):
            The row's place in the stream, counted from 0.

    Returns:
        [`RowReport`]: The report of a row without problems; it may still be a tie.

    Raises:
        ValueError: If the row has problems; names the row and the columns.
    """
    report = inspect_row(row)
    if report.problems:
        raise ValueError("\n".join(f"row {number} of the stream: {problem}" for problem in report.problems))
    return report


def _report(table, row: int, version: str) -> dict[str, Any]:
    report = inspect_row(table.to_pylist()[0])
    width, height = report.chosen_size or (None, None)
    rejected_width, rejected_height = report.rejected_size or (None, None)
    return {
        "row": row,
        "problems": report.problems,
        "tie": report.tie,
        "width": width,
        "height": height,
        "rejected_width": rejected_width,
        "rejected_height": rejected_height,
        "reference_sizes": report.reference_sizes,
        "has_masks": report.has_masks,
    }


def validate_dataset(
    dataset: datasets.Dataset, ties: Literal["error", "drop"] = "error", num_proc: int | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    Checks every row of a dataset before anything is trained on it. A dataset that passed is not checked again: `datasets`
    caches the reports where it caches the dataset.

    Args:
        dataset (`datasets.Dataset`):
            Rows of the preference schema.
        ties (`str`, *optional*, defaults to `"error"`):
            What pairs of one and the same picture are: `"error"` makes them problems, `"drop"` leaves them out.
        num_proc (`int`, *optional*):
            Number of processes that check rows.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: The dataset with the rows kept, and their reports in the same order,
        with the columns `row` (index in the given dataset), `width`, `height` (of chosen, in pixels), `rejected_width`,
        `rejected_height`, `reference_sizes` (list of [width, height]) and `has_masks`.

    Raises:
        ValueError: If a required column is missing, rows have problems (the first of them are named), no row is left,
            or `ties` is another value.
        TypeError: If a column has a type of another kind, or if this is not a `datasets.Dataset`.
    """
    if ties not in ("error", "drop"):
        raise ValueError(f"`ties` is {ties!r}: pass 'error' or 'drop'")
    check_columns(dataset)
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError("a stream can't be checked as a whole: its rows are checked one by one, as they come")
    if len(dataset) == 0:
        raise ValueError("the dataset has no rows: there is nothing to train on")

    # In Arrow's format, images are not decoded (one that can't be is a row's problem and no crash inside `map`), and unlike
    # a cast to `Image(decode=False)`, which `datasets` carries out for lists by writing all images again, it is free.
    reports = (
        dataset.select_columns([column for column in COLUMNS if column in dataset.features])
        .with_format("arrow")
        .map(
            _report,
            with_indices=True,
            features=_REPORT_FEATURES,
            num_proc=num_proc,
            fn_kwargs={"version": __version__},  # a part of the fingerprint: another release may check other things
            desc="Checking preference pairs",
        )
        .with_format(None)
    )
    tied = [row for row, tie in enumerate(reports["tie"]) if tie]
    problems = [(row, problem) for row, sentences in enumerate(reports["problems"]) for problem in sentences]
    if ties == "error":
        problems = sorted(problems + [(row, TIE) for row in tied], key=lambda problem: problem[0])
    if problems:
        # An image file that is repaired in place leaves the fingerprint as it is: the cached report would name it forever.
        for file in reports.cache_files:
            with suppress(OSError):
                Path(file["filename"]).unlink()
        raise _problem_error(problems)

    reports = reports.remove_columns(["problems", "tie"])
    if not tied:
        return dataset, reports
    if len(tied) == len(dataset):
        raise ValueError("every row's `chosen` and `rejected` are the same picture: no row is left to train on")
    logger.warning(
        "Dropped %d of %d rows whose `chosen` and `rejected` are the same picture: rows %s",
        len(tied),
        len(dataset),
        listed(tied),
    )
    kept = sorted(set(range(len(dataset))) - set(tied))
    return dataset.select(kept), reports.select(kept)
