# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What is asked for: prompts with references. A benchmark is a JSON file, a list of entries as UNO publishes DreamBench
(github.com/bytedance/UNO, `datasets/dreambench_multiip.json`), of which all but the first two fields are ours and optional:

| field | holds |
|---|---|
| `prompt` | the prompt |
| `image_paths` | the reference images, relative to the file's folder or to another one that is given |
| `subjects` | for each reference the name of its subject; those of one name show one subject. By default each shows its own |
| `photographs` | for each subject all images that show it, to be compared with; the model does not see them |
| `reference_masks` | for each reference the mask of its subject, or null |
| `boxes` | for each subject [left, top, right, bottom] where it is asked for, as shares of width and height, or null |
"""

import json
import numbers
import os
from collections.abc import Hashable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from ..data.images import IMAGE_MODES, decode_image, decode_mask, is_transparent
from ..errors import InputError


Source = Path | PIL.Image.Image | Mapping[str, Any]  # as a mapping: `{"bytes", "path"}`, as 🤗 Datasets stores images
Box = tuple[float, float, float, float]

FIELDS = ("prompt", "image_paths", "subjects", "photographs", "reference_masks", "boxes")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of photographs that are looked for in a folder


class Subject(NamedTuple):
    """
    Attributes:
        name (`str`):
            Its name in reports.
        references (`tuple[Source, ...]`):
            Images of it that the model is given.
        masks (`tuple[Source | None, ...]`):
            For each of these its mask in it, if there is one.
        photographs (`tuple[Source, ...]`):
            All images of it; empty if no others are known of.
        box (`tuple[float, float, float, float]`, *optional*):
            Left, top, right and bottom of where it is asked for, as shares of the image's width and height.
    """

    name: str
    references: tuple[Source, ...]
    masks: tuple[Source | None, ...] = ()
    photographs: tuple[Source, ...] = ()
    box: Box | None = None


class Item(NamedTuple):
    """
    Attributes:
        row (`int`):
            Its place in the benchmark, from 0.
        prompt (`str`):
            The prompt.
        references (`tuple[Source, ...]`):
            All references, in the order in which the model is given them.
        subjects (`tuple[Subject, ...]`):
            What they show.
    """

    row: int
    prompt: str
    references: tuple[Source, ...]
    subjects: tuple[Subject, ...]

    @property
    def group(self) -> Hashable:
        """Equal for items that ask for the same subjects, in any order: by their photographs, or else by the references."""
        shown = [subject.photographs or subject.references for subject in self.subjects]
        return frozenset(shown) if all(isinstance(each, Path) for images in shown for each in images) else self.row


class Benchmark(NamedTuple):
    """
    Attributes:
        items (`list[Item]`):
            The entries that can be used.
        problems (`list[tuple[int, str]]`):
            Row of each of the others, and what is wrong with it.
        unread (`list[str]`):
            Names of fields that are not read, each once.
    """

    items: list[Item]
    problems: list[tuple[int, str]]
    unread: list[str]


def open_image(source: Source) -> PIL.Image.Image:
    """
    An image in RGB, from a file or as it is given.

    Raises:
        ValueError: If there is no such file, or it can't be used; see [`~data.images.decode_image`].
    """
    image = decode_image({"path": str(source)} if isinstance(source, Path) else source)
    if 0 in image.size:
        raise ValueError("it has no pixels")
    if image.mode not in IMAGE_MODES:
        raise ValueError(f"it has mode {image.mode!r}, whose values RGB would clip: save it with 8 bits a channel")
    if is_transparent(image):
        raise ValueError("it has transparent pixels, and what is behind them is not said: paste it on a background")
    return image.convert("RGB")


def open_mask(source: Source, size: tuple[int, int]) -> np.ndarray:
    """
    A mask of shape `(H, W)`, in [0, 1].

    Raises:
        ValueError: If it can't be read, or is not of the (width, height) of its image.
    """
    return decode_mask({"path": str(source)} if isinstance(source, Path) else source, size)


class _Reader:
    """Reads entries, and opens each file once to see whether it is an image."""

    def __init__(self, root: Path, photographs_from_folders: bool, masks: Iterable[str] = ()):
        self.root = Path(os.path.abspath(root))  # of a relative one, it could not be told what leads out of it
        self.photographs_from_folders = photographs_from_folders
        self.masks = {Path(os.path.normpath(self.root / path)) for path in masks}
        self.sizes: dict[Path, tuple[int, int] | str] = {}

    def item(self, entry: Any, row: int) -> Item:
        if not isinstance(entry, Mapping):
            raise ValueError(f"it is of type {type(entry).__name__}, not a dictionary with `prompt` and `image_paths`")
        prompt = entry.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError("`prompt` is missing or empty")
        prompt.encode()  # raises where it holds halves of characters, which no tokenizer takes
        paths = self._list(entry, "image_paths", None)
        if not paths:
            raise ValueError("`image_paths` is missing or empty: there is no subject to compare with")
        references = [self._file(path, f"`image_paths`[{i}]") for i, path in enumerate(paths)]
        names = self._list(entry, "subjects", len(references)) or [str(i + 1) for i in range(len(references))]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("`subjects` are names: give strings")
        masks = self._list(entry, "reference_masks", len(references)) or [None] * len(references)
        masks = [
            None if path is None else self._mask(path, references[i], f"`reference_masks`[{i}]")
            for i, path in enumerate(masks)
        ]
        subjects = []
        unique = list(dict.fromkeys(names))
        photographs = self._list(entry, "photographs", len(unique))
        boxes = self._list(entry, "boxes", len(unique)) or [None] * len(unique)
        for s, name in enumerate(unique):
            shown = [i for i, other in enumerate(names) if other == name]
            subjects.append(
                Subject(
                    name,
                    tuple(references[i] for i in shown),
                    tuple(masks[i] for i in shown),
                    self._photographs(photographs and photographs[s], references[shown[0]], s),
                    None if boxes[s] is None else _box(boxes[s], f"`boxes`[{s}]"),
                )
            )
        return Item(row, prompt, tuple(references), tuple(subjects))

    def _list(self, entry: Mapping, name: str, length: int | None) -> list | None:
        value = entry.get(name)
        if value is not None and not isinstance(value, list):
            raise ValueError(f"`{name}` is of type {type(value).__name__}, not a list")
        if value is not None and length is not None and len(value) != length:
            of = "subject" if name in ("photographs", "boxes") else "reference"
            raise ValueError(f"`{name}` has {len(value)} entries, and there are {length} {of}s: give one for each")
        return value

    def _path(self, value: Any, label: str) -> Path:
        if not isinstance(value, str):
            raise ValueError(f"{label} is {value!r}, not a path")
        path = Path(os.path.normpath(self.root / value))
        if not path.is_relative_to(self.root):
            raise ValueError(f"{label} is {value!r}, which leads out of {self.root}, and is not read")
        return path

    def _file(self, value: Any, label: str) -> Path:
        path = self._path(value, label)
        if path not in self.sizes:
            try:
                self.sizes[path] = open_image(path).size
            except ValueError as error:
                self.sizes[path] = str(error)
        if isinstance(self.sizes[path], str):
            raise ValueError(f"{label} is {value!r}, which can't be used: {self.sizes[path]}")
        return path

    def _mask(self, value: Any, reference: Path, label: str) -> Path:
        path = self._path(value, label)
        try:
            if not (open_mask(path, self.sizes[reference]) > 0.5).any():
                raise ValueError("it is black, so its subject is nowhere")
        except ValueError as error:
            raise ValueError(f"{label} is {value!r}, which can't be used: {error}") from error
        return path

    def _photographs(self, given: Any, reference: Path, subject: int) -> tuple[Path, ...]:
        if given is not None:
            if not isinstance(given, list) or not given:
                raise ValueError(f"`photographs`[{subject}] is {given!r}, not a list of paths")
            return tuple(self._file(path, f"`photographs`[{subject}][{i}]") for i, path in enumerate(given))
        if not self.photographs_from_folders:
            return ()
        beside = sorted(path for path in reference.parent.iterdir() if path.suffix.lower() in SUFFIXES)
        return tuple(
            self._file(str(path.relative_to(self.root)), "a photograph beside a reference")
            for path in beside
            if path not in self.masks
        )


def _box(value: Any, label: str) -> Box:
    numeric = isinstance(value, list) and len(value) == 4 and all(isinstance(side, numbers.Real) for side in value)
    if not numeric or not (0 <= value[0] < value[2] <= 1 and 0 <= value[1] < value[3] <= 1):
        raise ValueError(
            f"{label} is {value!r}: give [left, top, right, bottom] as shares of width and height, 0 <= left < right <= 1 and "
            "0 <= top < bottom <= 1"
        )
    return tuple(map(float, value))


def content_of(items: Iterable[Item]) -> str:
    """A hash of the image files of a benchmark."""
    found = {path for item in items for subject in item.subjects for part in subject[1:4] for path in part}
    files = sorted(path for path in found if isinstance(path, Path))
    return sha256(b"".join(sha256(path.read_bytes()).digest() for path in files)).hexdigest()[:16]


def read_benchmark(
    path: str | Path, root: str | Path | None = None, photographs_from_folders: bool = False
) -> Benchmark:
    """
    Reads a benchmark file and all images that it names. Entries that can't be used are named, and the others are kept.

    Args:
        path (`str` or `Path`):
            The JSON file.
        root (`str` or `Path`, *optional*):
            Folder that its paths are relative to, and don't lead out of. Defaults to the file's own.
        photographs_from_folders (`bool`, *optional*, defaults to `False`):
            Whether all images in a reference's folder show its subject, as in DreamBench.

    Raises:
        InputError: If the file is not there or no list, or no entry of it can be used.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}. Give the benchmark's JSON file") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON file: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f'{path} holds no list of entries, as in [{{"prompt": "a cat", "image_paths": ["cat.jpg"]}}]')
    masks = (
        mask
        for entry in entries
        if isinstance(entry, Mapping) and isinstance(entry.get("reference_masks"), list)
        for mask in entry["reference_masks"]
        if isinstance(mask, str)
    )
    reader = _Reader(Path(root) if root is not None else path.parent, photographs_from_folders, masks)
    items, problems = [], []
    for row, entry in enumerate(entries):
        try:
            items.append(reader.item(entry, row))
        except ValueError as error:
            problems.append((row, str(error)))
    if not items:
        raise InputError(f"no entry of {path} can be used. The first: row {problems[0][0]}: {problems[0][1]}")
    names = (name for entry in entries if isinstance(entry, Mapping) for name in entry)
    return Benchmark(items, problems, [name for name in dict.fromkeys(names) if name not in FIELDS])
