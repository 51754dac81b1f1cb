# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Scores of many images, one line of JSON each, so that a run that was stopped goes on where it was."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import PIL.Image
from tqdm.auto import tqdm

from .benchmark import Item, open_image
from .drawing import image_path
from .files import write_whole
from .instances import FindInstances, asked_boxes, usable
from .scorers import Scorer


SCORES = "scores.jsonl"


class Line(NamedTuple):
    """
    What was found of one image.

    Attributes:
        system (`str`):
            Name of what drew it.
        row, number (`int`):
            Row of the benchmark, and number among its images.
        digest (`str`):
            Of the image's file: another image is measured anew.
        scores (`dict[str, float]`):
            Finite numbers.
        remarks (`list[str]`):
            What went wrong, for people.
    """

    system: str
    row: int
    number: int
    digest: str
    scores: dict[str, float]
    remarks: list[str]


def read_lines(path: Path) -> list[Line]:
    """The lines of a file, if it is there. What was not written to its end is passed over."""
    lines = []
    for text in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        try:
            lines.append(Line(**json.loads(text)))
        except (json.JSONDecodeError, TypeError):
            continue
    return lines


def score_image(
    image: PIL.Image.Image, item: Item, scorers: Sequence[Scorer], find: FindInstances
) -> tuple[dict[str, float], list[str]]:
    """
    Scores of an image, and remarks. A scorer that refuses the image, or gives a number that is not finite, is named in the
    remarks; the others count.
    """
    scores, remarks = {}, []
    try:
        instances = find(image, item)
        if instances is not None:
            instances, remarks = usable(instances, image, item)
    except ValueError as error:
        instances, remarks = None, [f"its instances can't be used: {error}"]
    for scorer in scorers:
        try:
            found = scorer(image, item, instances)
        except ValueError as error:
            remarks.append(f"{getattr(scorer, '__qualname__', type(scorer).__name__)}: {error}")
            continue
        for name, value in found.items():
            if math.isfinite(value):
                scores[name] = float(value)
            else:
                remarks.append(f"{name} is {value}, and does not count")
    return scores, remarks


def measure(
    systems: Mapping[str, str | Path],
    items: Sequence[Item],
    scorers: Sequence[Scorer],
    output_dir: str | Path,
    n_images: int = 1,
    find: FindInstances = asked_boxes,
) -> tuple[list[Line], list[tuple[int, str]]]:
    """
    Measures images of a benchmark, and writes a line for each to `<output_dir>/scores.jsonl`. Those that have one are not
    measured again.

    Args:
        systems (`Mapping[str, str | Path]`):
            For the name of each system the folder of its images, `<row>_<number>.png`.
        items (`Sequence[Item]`):
            Items of the benchmark.
        scorers (`Sequence[Scorer]`):
            What is measured.
        output_dir (`str` or `Path`):
            Folder of the evaluation. Its lines are of these scorers: another set of them needs another folder.
        n_images (`int`, *optional*, defaults to `1`):
            Images of each item.
        find (`FindInstances`, *optional*):
            What finds the subjects in an image. Defaults to the boxes of the benchmark, where it has some.

    Returns:
        `tuple[list[Line], list[tuple[int, str]]]`: A line for each image, in the order of systems and rows; and the rows of
        images that are not there or can't be read.
    """
    path = Path(output_dir) / SCORES
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {(line.system, line.row, line.number, line.digest): line for line in read_lines(path)}
    write_whole(path, "".join(map(_text, known.values())))  # without what was cut off
    lines, problems = [], []
    with path.open("a", encoding="utf-8") as file:
        for system, folder in systems.items():
            for item in tqdm(items, desc=f"scores of {system}", disable=None):
                for number in range(n_images):
                    image_file = image_path(Path(folder), item.row, number)
                    try:
                        image = open_image(image_file)
                    except ValueError as error:
                        problems.append((item.row, f"the image of {system} can't be used: {error}"))
                        continue
                    key = system, item.row, number, hashlib.sha256(image_file.read_bytes()).hexdigest()[:16]
                    if key not in known:
                        known[key] = Line(*key, *score_image(image, item, scorers, find))
                        file.write(_text(known[key]))
                        file.flush()
                    lines.append(known[key])
    return lines, problems


def _text(line: Line) -> str:
    return json.dumps(line._asdict(), ensure_ascii=False) + "\n"
