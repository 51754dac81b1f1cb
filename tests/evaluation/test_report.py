# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json
import re

import numpy as np
import PIL.Image
import pytest

from trl_focus.evaluation import Item, Line, Subject, bootstrap, summarize, write_report
from trl_focus.evaluation.report import shown_rows
from trl_focus.evaluation.sheets import GAP, LINE, TILE, SheetRow, draw_sheet


def items(n: int, subjects=lambda row: 2) -> list[Item]:
    found = []
    for row in range(n):
        images = tuple(PIL.Image.new("RGB", (8, 8), "red") for _ in range(subjects(row)))
        found.append(
            Item(row, f"prompt {row} <b>", images, tuple(Subject(str(i), (x,)) for i, x in enumerate(images)))
        )
    return found


def lines(system: str, values: dict[int, list[float]], name: str = "identity") -> list[Line]:
    return [
        Line(system, row, number, "", {name: value}, [])
        for row, found in values.items()
        for number, value in enumerate(found)
    ]


def test_images_of_a_row_count_once():
    summary = summarize(lines("a", {0: [0.0, 1.0], 1: [0.0]}), items(2))
    assert summary.rows == {"a": {"identity": {0: 0.5, 1: 0.0}}}
    assert summary.means["a"]["identity"].mean == 0.25 and summary.means["a"]["identity"].n == 2
    assert summary.differences == {} == summary.by_subjects


def test_differences_are_of_the_rows_of_both():
    first, second = {row: [row / 10] for row in range(5)}, {row: [row / 10 + 0.2] for row in range(2, 7)}
    summary = summarize(lines("a", first) + lines("b", second) + lines("b", {0: [1.0]}, "clip_t"), items(7))
    difference = summary.differences["b"]["identity"]
    assert difference.n == 3 and difference.mean == difference.low == pytest.approx(0.2)
    assert "clip_t" not in summary.differences["b"] and summary.scores == ["identity", "clip_t"]


def test_by_number_of_subjects():
    values = {row: [float(row)] for row in range(6)}
    summary = summarize(lines("a", values), items(6, lambda row: 1 + row % 2))
    assert {count: found["a"]["identity"].mean for count, found in summary.by_subjects.items()} == {1: 2.0, 2: 3.0}


def test_rows_with_the_same_subjects_are_drawn_together(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    asked = [Item(row, "a", (paths[row // 3],), (Subject("a", (paths[row // 3],)),)) for row in range(36)]
    values = np.random.default_rng(0).normal(size=36)
    summary = summarize(lines("a", {row: [values[row]] for row in range(36)}), asked)
    assert summary.means["a"]["identity"] == bootstrap(values, [row // 3 for row in range(36)])


def test_rows_that_are_shown():
    values = {row: [row / 20] for row in range(20)}
    score, shown = shown_rows(summarize(lines("a", values), items(20)))
    assert score == "identity" and shown == {"best": [19, 18, 17, 16, 15], "worst": [0, 1, 2, 3, 4]}
    changed = {row: [row / 20 + (row == 3) - (row == 4)] for row in range(20)}
    _, shown = shown_rows(summarize(lines("a", values) + lines("b", changed), items(20)))
    assert shown["gained most"][0] == 3 and shown["lost most"][0] == 4
    assert shown_rows(summarize(lines("a", {0: [1.0]}), items(1)))[1] == {"best": [0]}
    assert shown_rows(summarize(lines("a", {0: [1.0], 1: [0.0]}), items(2)))[1] == {"best": [0], "worst": [1]}


@pytest.fixture
def report(tmp_path):
    systems = {name: tmp_path / name for name in ("base", "lora")}
    for folder in systems.values():
        folder.mkdir()
        for row in range(12):
            PIL.Image.new("RGB", (8, 8), "blue").save(folder / f"{row}_0.png")
    worse = {row: [0.5 + row / 100] for row in range(12)}
    better = {row: [0.6 + row / 100] for row in range(12)}
    found = lines("base", worse) + lines("lora", better)
    found += lines("base", worse, "collapse/0.4") + lines("lora", better, "collapse/0.4")
    found[0].remarks.append("no subject found, and 2 asked for")
    problems = [(12, "`image_paths`[0] is '<script>![x](http://a/b.png)', which can't be used")]
    facts = write_report(tmp_path / "out", found, items(13), systems, problems, {"model": "<tiny>"})
    return tmp_path / "out", facts


def test_report_for_programs(report):
    folder, facts = report
    stored = json.loads((folder / "report.json").read_text())
    assert stored == facts
    assert stored["counts"] == {
        "items": 13,
        "images": 48,
        "sets of subjects": 13,
        "rows with problems": 1,
        "images with remarks": 1,
    }
    assert stored["differences"]["lora"]["identity"]["mean"] == pytest.approx(0.1)
    assert stored["problems"][0]["row"] == 12 and stored["remarks"][0]["row"] == 0


def test_report_for_people(report):
    folder, _ = report
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    # a table that Markdown reads as one: its rows have as many cells as its head, and no line is between them
    rows = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)[0].splitlines()
    assert len(rows) == 4 and {row.count("|") for row in rows} == {6}
    assert "| identity, of the whole image ↑ | `identity` | 0.555 [" in rows[2] and "**+0.100 [+0.100" in rows[2]
    assert "lora − base" in rows[0]
    # more identity is better, and more collapse worse
    assert page.count("cell better") == page.count("cell worse") == 1
    assert page.index("cell better") < page.index("cell worse")
    for told in ("leakage, which needs each subject cut out, is left out", "row 12", "row 0, image 0 of base"):
        assert told in text
    assert "![x](" not in text and "<script>" not in text.replace("\\<", "")
    for told in (text, page):
        assert "13 items of 13 sets of subjects, 48 images" in told
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;tiny&gt;" in page
    for name in ("gained-most", "lost-most"):
        assert f"sheets/{name}.jpg" in text and f"sheets/{name}.jpg" in page
        with PIL.Image.open(folder / "sheets" / f"{name}.jpg") as sheet:
            assert sheet.size == (GAP + 4 * (TILE + GAP), LINE + GAP + 5 * (2 * LINE + TILE + GAP))


def test_nothing_measured(tmp_path):
    for found in ([], [Line("a", 0, 0, "", {}, [])]):
        with pytest.raises(ValueError, match="no image could be measured"):
            write_report(tmp_path, found, items(1), {"a": tmp_path})


def test_one_row_has_no_interval(tmp_path):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "0_0.png")
    facts = write_report(tmp_path / "out", lines("a", {0: [0.5]}), items(1), {"a": tmp_path})
    assert facts["means"]["a"]["identity"] == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert "nan" not in (tmp_path / "out" / "report.md").read_text().lower()


def test_sheet_shows_each_image_in_its_place():
    red, blue, green = (PIL.Image.new("RGB", (40, 20), colour) for colour in ("red", "blue", "lime"))
    rows = [SheetRow("a " * 500, [red], [blue, None], ["", ""]), SheetRow("b", [red, red], [green, blue], ["x", "y"])]
    sheet = draw_sheet(rows, ["base", "lora"])
    assert sheet.size == (GAP + 4 * (TILE + GAP), LINE + GAP + 2 * (2 * LINE + TILE + GAP))

    def seen(row, column):
        return sheet.getpixel(
            (GAP + column * (TILE + GAP) + TILE // 2, LINE + GAP + row * (2 * LINE + TILE + GAP) + LINE + TILE // 2)
        )

    colours = {name: PIL.Image.new("RGB", (1, 1), name).getpixel((0, 0)) for name in ("red", "blue", "lime", "white")}
    expected = [["red", "white", "blue", "white"], ["red", "red", "lime", "blue"]]
    assert [[seen(row, column) for column in range(4)] for row in range(2)] == [
        [colours[name] for name in row] for row in expected
    ]
