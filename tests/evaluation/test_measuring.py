# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json

import PIL.Image
import pytest

from trl_focus.errors import InputError
from trl_focus.evaluation import Instance, Item, Subject, measure
from trl_focus.evaluation.files import keep_settings
from trl_focus.evaluation.measuring import SCORES, read_lines


def item(row: int) -> Item:
    return Item(row, f"prompt {row}", (), (Subject("a", ()),))


ITEMS = [item(0), item(2)]


class Brightness:
    """A scorer that counts how often it is called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, image, item, instances):
        self.calls += 1
        return {"brightness": image.getpixel((0, 0))[0], "row": item.row}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for row in (0, 2):
        for number in (0, 1):
            PIL.Image.new("RGB", (4, 4), (10 * row + number,) * 3).save(tmp_path / "images" / f"{row}_{number}.png")
    return tmp_path


def run(folder, scorers, **kwargs):
    return measure({"a": folder / "images"}, ITEMS, scorers, folder, n_images=2, **kwargs)


def test_lines(folder):
    lines, problems = run(folder, [Brightness()])
    assert problems == []
    assert [(line.system, line.row, line.number, line.scores) for line in lines] == [
        ("a", row, number, {"brightness": 10 * row + number, "row": row}) for row in (0, 2) for number in (0, 1)
    ]
    assert read_lines(folder / SCORES) == lines


def test_goes_on_where_it_was_stopped(folder):
    whole, _ = run(folder, [Brightness()])
    path = folder / SCORES
    text = path.read_text()
    path.write_text("".join(text.splitlines(keepends=True)[:2]) + text.splitlines()[2][:40])  # cut off within a line
    scorer = Brightness()
    assert run(folder, [scorer]) == (whole, []) and scorer.calls == 2
    assert path.read_text() == text
    assert run(folder, [scorer]) == (whole, []) and scorer.calls == 2


def test_another_image_is_measured_anew(folder):
    run(folder, [Brightness()])
    PIL.Image.new("RGB", (4, 4), "white").save(folder / "images" / "2_0.png")
    scorer = Brightness()
    lines, _ = run(folder, [scorer])
    assert scorer.calls == 1 and [line.scores["brightness"] for line in lines] == [0, 1, 255, 21]


def test_images_that_are_not_there(folder):
    (folder / "images" / "0_1.png").unlink()
    (folder / "images" / "2_0.png").write_bytes(b"no image")
    lines, problems = run(folder, [Brightness()])
    assert [(line.row, line.number) for line in lines] == [(0, 0), (2, 1)]
    assert [row for row, _ in problems] == [0, 2]
    assert "the image of a can't be used: " in problems[0][1] and "0_1.png is not a file" in problems[0][1]
    assert "not an image file" in problems[1][1]


def test_scorer_that_is_not_finite(folder):
    def broken(image, item, instances):
        return {"broken": float("nan") if item.row else float("inf"), "good": 1}

    lines, _ = run(folder, [broken, Brightness()])
    assert all(line.scores.keys() == {"good", "brightness", "row"} for line in lines)
    assert lines[0].remarks == ["broken is inf, and does not count"]
    assert lines[2].remarks == ["broken is nan, and does not count"]
    assert all("NaN" not in line and "Infinity" not in line for line in (folder / SCORES).read_text().splitlines())


def test_scorer_that_refuses(folder):
    def picky(image, item, instances):
        raise ValueError("not this one")

    lines, _ = run(folder, [picky, Brightness()])
    assert lines[0].scores["brightness"] == 0 and "picky: not this one" in lines[0].remarks[0]


def test_scorer_that_fails_is_a_failure(folder):
    def failing(image, item, instances):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(folder, [failing])


def test_finder_of_ones_own(folder):
    def find(image, item):
        return [Instance((0, 0, 2, 2)), Instance((0, 0, 0, 0)), Instance((2, 2, 9, 9))] if item.row else None

    seen = []

    def scorer(image, item, instances):
        seen.append(instances and [instance.box for instance in instances])
        return {}

    lines, _ = run(folder, [scorer], find=find)
    assert seen == [None, None, [(0, 0, 2, 2), (2, 2, 4, 4)], [(0, 0, 2, 2), (2, 2, 4, 4)]]
    assert lines[0].remarks == [] and lines[2].remarks == [
        "instance 1 is empty, and left out",
        "2 instances found, and 1 asked for",
    ]


def test_finder_whose_instances_can_not_be(folder):
    def find(image, item):
        return [Instance((0, 0, 2, 2), subject=0), Instance((0, 0, 2, 2), subject=0)]

    lines, _ = run(folder, [Brightness()], find=find)
    assert lines[0].scores["brightness"] == 0 and "its instances can't be used" in lines[0].remarks[0]


def test_settings(tmp_path):
    folder, settings = tmp_path / "a", {"seed": 0, "call": {"height": 64}, "model": None}
    keep_settings(folder, {**settings, "model": "misspelt"})
    keep_settings(folder, settings)  # nothing came of the first
    (folder / "scores.jsonl").touch()
    keep_settings(folder, settings)
    with pytest.raises(InputError, match="other settings: seed, n. Give another"):
        keep_settings(folder, {**settings, "seed": 1, "n": 2})
    assert json.loads((folder / "settings.json").read_text()) == settings
