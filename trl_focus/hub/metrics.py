# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What a card tells of a run's logs: a table and a curve."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any


# Metric -> which of its values is the best
BEST = {"loss": min, "rewards/accuracies": max, "rewards/margins": max, "errors/chosen": min}
KNOWN = re.compile(rf"(eval_(.+_)?)?({'|'.join(BEST)})")
PANELS = {"accuracy": "rewards/accuracies", "margin": "rewards/margins", "error of chosen images": "errors/chosen"}
MAX_POINTS = 200
CURVE = "training_curve.png"

Series = dict[str, list[tuple[int, float]]]


def series(log_history: Sequence[dict[str, Any]]) -> Series:
    """(step, value) of each known metric, those of training first."""
    found: Series = {}
    for logs in log_history:
        for name, value in logs.items():
            if KNOWN.fullmatch(name):
                found.setdefault(name, []).append((logs["step"], value))
    places = [*BEST]
    return dict(
        sorted(
            found.items(), key=lambda item: (item[0].startswith("eval_"), places.index(KNOWN.fullmatch(item[0])[3]))
        )
    )


def summary(metrics: Series) -> list[dict[str, Any]]:
    """
    How each metric began and ended. In training these are means of the first and of the last tenth of the logs, since single
    ones are noisy; in evaluation the first, the last, and the best with its step.
    """
    rows = []
    for name, points in metrics.items():
        row = {"metric": name, "best": None, "best_step": None}
        values = [value for _, value in points]
        tenth = 1 if name.startswith("eval_") else -(-len(values) // 10)
        row["first"], row["last"] = fmean(values[:tenth]), fmean(values[-tenth:])
        if name.startswith("eval_"):
            best = BEST[KNOWN.fullmatch(name)[3]]
            row["best_step"], row["best"] = best(points, key=lambda point: point[1])
        rows.append(row)
    return rows


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `MAX_POINTS` of them: of neighbours the mean, at the last of their steps."""
    size = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], fmean(value for _, value in group)) for group in groups]


def panels(metrics: Series) -> dict[str, Series]:
    """The curves that a picture would show, by the titles of its panels; none where nothing was logged more than once."""
    drawn = {
        title: {
            name: points
            for name, points in metrics.items()
            if KNOWN.fullmatch(name)[3] == metric and (len(points) > 1 or name.startswith("eval_"))
        }
        for title, metric in PANELS.items()
    }
    return {title: lines for title, lines in drawn.items() if any(len(points) > 1 for points in lines.values())}


def draw_curve(metrics: Series, path: Path):
    """Draws accuracy, margin and the error of chosen images over the steps, if matplotlib is there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    drawn = panels(metrics)
    if not drawn:
        return
    figure = Figure(figsize=(3.6 * len(drawn), 2.8), layout="constrained")
    for ax, (title, lines) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True):
        ax.set(title=title, xlabel="step")
        ax.axhline(0.5 if title == "accuracy" else 0, color="0.75", linewidth=1, zorder=0)
        for name, points in lines.items():
            evaluated = name.startswith("eval_")
            part = name.removesuffix(PANELS[title]).removeprefix("eval_").rstrip("_")
            label = f"evaluation {part}".rstrip() if evaluated else "training"
            ax.plot(*zip(*points, strict=True), marker="o" if evaluated else None, markersize=3, label=label)
        if title == "accuracy":
            ax.set_ylim(-0.02, 1.02)
        else:
            ax.ticklabel_format(axis="y", scilimits=(-3, 4))
        if any(name.startswith("eval_") for name in lines):
            ax.legend(frameon=False, fontsize="small")
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
