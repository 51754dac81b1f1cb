# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The report of an evaluation: for people (Markdown, HTML, sheets of images), and for programs (JSON)."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from .benchmark import Item, open_image
from .drawing import image_path
from .measuring import Line
from .scorers import lower_is_better
from .sheets import SheetRow, draw_sheet
from .statistics import LEAST_GROUPS, Estimate
from .summary import NAMES, Summary, summarize


IN_A_SHEET = 5  # rows
SHOWN = 20  # problems and remarks
RANKED_BY = ("instances/identity", "identity")  # the first that there is


class Cell(NamedTuple):
    """A number of a table, and whether it is better (`True`), worse (`False`), or can't be told (`None`)."""

    text: str
    better: bool | None = None


def number(value: float, sign: bool = False) -> str:
    value = round(value, 3) + 0.0  # and no -0.000
    return f"{value:{'+' if sign else ''}.3f}"


def estimate_cell(estimate: Estimate | None) -> Cell:
    """A mean with its interval."""
    if estimate is None:
        return Cell("–")
    if math.isnan(estimate.low):
        return Cell(number(estimate.mean))
    return Cell(f"{number(estimate.mean)} [{number(estimate.low)}, {number(estimate.high)}]")


def difference_cell(estimate: Estimate | None, lower: bool) -> Cell:
    """A difference with its interval; better or worse where the interval leaves 0 out."""
    if estimate is None:
        return Cell("–")
    if math.isnan(estimate.low):
        return Cell(number(estimate.mean, sign=True))
    text = f"{number(estimate.mean, True)} [{number(estimate.low, True)}, {number(estimate.high, True)}]"
    if estimate.low <= 0 <= estimate.high:
        return Cell(text)
    return Cell(text, (estimate.mean < 0) == lower)


def table(
    scores: Sequence[str],
    means: Mapping[str, Mapping[str, Estimate]],
    differences: Mapping[str, Mapping[str, Estimate]],
) -> list[tuple[str, str, list[Cell]]]:
    """Rows of a table: name of the score, what it is, and its cells: each system's mean, then each other's difference."""
    rows = []
    for name in scores:
        if not any(name in found for found in means.values()):
            continue
        lower = lower_is_better(name)
        cells = [estimate_cell(found.get(name)) for found in means.values()]
        cells += [difference_cell(found.get(name), lower) for found in differences.values()]
        rows.append((name, f"{NAMES.get(name, name)} {'↓' if lower else '↑'}", cells))
    return rows


def left_out(scores: Sequence[str]) -> list[str]:
    """What could not be measured, and why."""
    sentences = []
    if not any(name.startswith("instances/") for name in scores):
        sentences.append(
            "Nothing says where the subjects are in an image, so identity is that of the whole image against each reference, "
            "and leakage, which needs each subject cut out, is left out. `boxes` in the benchmark, or a function that finds "
            "them, would tell."
        )
    if "dino/reference" in scores and "dino/photographs" not in scores:
        sentences.append(
            "No further photographs of the subjects are known of, so DINO and CLIP-I are those against the reference alone (the "
            "Kosmos-G setting). They are higher than those against all photographs: the two can't be compared."
        )
    return sentences


def shown_rows(summary: Summary) -> tuple[str, dict[str, list[int]]]:
    """
    The rows that are worth looking at.

    Returns:
        `tuple[str, dict[str, list[int]]]`: The score by which they are chosen; and titles of sheets with their rows: where the
        last system gained and lost most against the first, or where the one system is best and worst.
    """
    score = next((name for name in RANKED_BY if name in summary.scores), summary.scores[0])
    first, last = ([*summary.rows.values()][place].get(score, {}) for place in (0, -1))
    if len(summary.rows) == 1:
        ranked, titles = sorted(first, key=first.get), ("worst", "best")
    else:
        both = first.keys() & last.keys()
        ranked = sorted(both, key=lambda row: (last[row] - first[row], row))
        titles = "lost most", "gained most"
    half = min(IN_A_SHEET, math.ceil(len(ranked) / 2))
    chosen = {titles[1]: ranked[::-1][:half], titles[0]: ranked[: min(half, len(ranked) - half)]}
    return score, {title: rows for title, rows in chosen.items() if rows}


def _image_or_none(path: Path) -> PIL.Image.Image | None:
    try:
        return open_image(path)
    except ValueError:  # it was told
        return None


def _sheets(
    output_dir: Path, summary: Summary, items: Sequence[Item], systems: Mapping[str, Path]
) -> list[dict[str, str]]:
    score, chosen = shown_rows(summary)
    by_row = {item.row: item for item in items}
    (output_dir / "sheets").mkdir(exist_ok=True)
    found = []
    for title, rows in chosen.items():
        lines = []
        for row in rows:
            images, notes = [], []
            for system, folder in systems.items():
                path = image_path(Path(folder), row, 0)
                images.append(_image_or_none(path))
                value = summary.rows.get(system, {}).get(score, {}).get(row)
                notes.append("" if value is None else f"{score} {number(value)}")
            item = by_row[row]
            lines.append(SheetRow(f"{row}: {item.prompt}", [*map(open_image, item.references)], images, notes))
        file = f"sheets/{title.replace(' ', '-')}.jpg"
        draw_sheet(lines, [*systems]).save(output_dir / file, quality=90)
        found.append({"file": file, "title": title, "score": score})
    return found


def plain(text: Any) -> str:
    """A text that Markdown shows as it is: whoever wrote a benchmark must not have a report fetch images."""
    return re.sub(r"([\\`*_\[\]<>|!&])", r"\\\1", " ".join(str(text).split()))


def _finite(value: Any) -> Any:
    """As JSON can hold it: an interval that there isn't is null."""
    if isinstance(value, Estimate):
        return {name: _finite(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def write_report(
    output_dir: str | Path,
    lines: Sequence[Line],
    items: Sequence[Item],
    systems: Mapping[str, str | Path],
    problems: Sequence[tuple[int, str]] = (),
    about: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """
    Writes `report.md`, `report.html`, `report.json` and sheets of images.

    Args:
        output_dir (`str` or `Path`):
            Where to.
        lines (`Sequence[Line]`):
            From [`measure`], at least one.
        items (`Sequence[Item]`):
            Items of the benchmark.
        systems (`Mapping[str, str | Path]`):
            For the name of each system the folder of its images. Others are compared with the first.
        problems (`Sequence[tuple[int, str]]`, *optional*):
            Rows that could not be measured, and why.
        about (`Mapping[str, str]`, *optional*):
            What else is told: models and settings.

    Returns:
        `dict`: What `report.json` holds: `about`, `counts`, `means`, `differences`, `by_subjects`, `left_out`, `problems` and
        `remarks`.

    Raises:
        ValueError: If there are no lines, or no score in any of them.
    """
    if not any(line.scores for line in lines):
        raise ValueError("no image could be measured: there is nothing to report")
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    summary = summarize(lines, items)
    groups = len({item.group for item in items})
    remarks = [(line.row, f"image {line.number} of {line.system}: {text}") for line in lines for text in line.remarks]
    facts = {
        "about": dict(about or {}),
        "counts": {
            "items": len(items),
            "images": len(lines),
            "sets of subjects": groups,
            "rows with problems": len({row for row, _ in problems}),
            "images with remarks": sum(bool(line.remarks) for line in lines),
        },
        "means": summary.means,
        "differences": summary.differences,
        "by_subjects": summary.by_subjects,
        "left_out": left_out(summary.scores),
        "problems": [{"row": row, "problem": text} for row, text in problems],
        "remarks": [{"row": row, "remark": text} for row, text in remarks],
    }
    facts = _finite(facts)
    (output_dir / "report.json").write_text(
        json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8"
    )
    first = next(iter(summary.means))
    context = {
        **facts,
        "columns": [*summary.means, *(f"{other} − {first}" for other in summary.differences)],
        "rows": table(summary.scores, summary.means, summary.differences),
        "tables_by_subjects": {
            count: table(summary.scores, means, {}) for count, means in summary.by_subjects.items()
        },
        "systems": [*summary.means],
        "grouped": groups >= LEAST_GROUPS,
        "groups": groups,
        "sheets": _sheets(output_dir, summary, items, systems),
        "shown": SHOWN,
    }
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(enabled_extensions=("html.jinja",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["plain"] = plain
    for name in ("report.md", "report.html"):
        (output_dir / name).write_text(templates.get_template(f"{name}.jinja").render(context), encoding="utf-8")
    return facts
