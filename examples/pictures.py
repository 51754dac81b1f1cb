# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Pictures and a table of what an example did. Plain figures, so pyplot's global state is left alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np
from datasets import Dataset
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from rich import box
from rich.table import Table


SUBJECT_COLOURS = ("#00a3e0", "#d6267f")
INK, FAINT = "#22262b", "#8a9199"
BLUE, ORANGE, GREEN = "#1f6fb4", "#d95f02", "#1b8a5a"
CELL, GAP, CAPTION, FOOT, HEAD, EDGE = 1.5, 0.1, 0.3, 0.25, 0.3, 0.15  # inches


def draw_pairs(dataset: Dataset, path: str | Path, rows: int = 4) -> None:
    """A sheet with a row a pair: the references, then both scenes, plain and with the masks tinted."""
    rows = min(rows, len(dataset))
    figure, grid = sheet(rows, ("references", "", "chosen", "its masks", "rejected", "its masks"))
    for axes, pair in zip(grid, dataset.select(range(rows)), strict=True):
        subjects = pair["subjects"]
        caption(axes[0], pair["prompt"])
        damage = f"{pair['damage']}: {pair['damaged']}"
        caption(axes[-1], damage, SUBJECT_COLOURS[subjects.index(pair["damaged"])], align="right")
        for ax, image, name, colour in zip(axes, pair["references"], subjects, SUBJECT_COLOURS, strict=False):
            show(ax, image, colour)
            ax.set_xlabel(name, color=colour, fontsize=8, labelpad=3)
        for first, side in ((2, "chosen"), (4, "rejected")):
            show(axes[first], pair[side])
            show(axes[first + 1], pair[side])
            for mask, colour in zip(pair[f"{side}_masks"], SUBJECT_COLOURS, strict=True):
                tint(axes[first + 1], mask, colour)
    save(figure, path)


def draw_samples(
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    prompts: Sequence[str],
    references: Sequence[Sequence[Image.Image]],
    path: str | Path,
) -> None:
    """A row a prompt: its references, then what the model drew without and with the LoRA."""
    n_references = max(map(len, references), default=0)
    titles = ["references"] * bool(n_references) + [""] * (n_references - 1) + ["base", "with LoRA"]
    figure, grid = sheet(len(prompts), titles)
    for axes, prompt, pictures, *drawn in zip(grid, prompts, references, before, after, strict=True):
        caption(axes[0], shorten(prompt, 20 * len(axes), placeholder=" …"))
        for ax, image in zip(axes, pictures, strict=False):
            show(ax, image)
        for ax, image in zip(axes[-2:], drawn, strict=True):
            show(ax, image)
    save(figure, path)


def draw_training(log_history: Sequence[dict], path: str | Path) -> None:
    """Loss, accuracy and rewards over the steps of `trainer.state.log_history`."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, accuracy, rewards = figure.subplots(1, 3)

    loss.set_title("loss")
    level(loss, math.log(2), "ln 2")
    curves(loss, log_history, {"loss": ("", BLUE)})

    accuracy.set_title("implicit accuracy")
    accuracy.set_ylim(-0.03, 1.03)
    level(accuracy, 0.5, "chance")
    curves(accuracy, log_history, {"rewards/accuracies": ("", BLUE)})

    rewards.set_title("implicit rewards")
    level(rewards, 0.0)
    names = {"rewards/margins": ("margin", GREEN), "rewards/chosen": ("chosen", BLUE)}
    curves(rewards, log_history, names | {"rewards/rejected": ("rejected", ORANGE)})
    save(figure, path)


def summary_table(rows: Sequence[tuple[str, str]], title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, show_header=False, title_justify="left", title_style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return table


def sheet(rows: int, titles: Sequence[str]) -> tuple[Figure, list[list[Axes]]]:
    """Square cells under column titles, with room for a caption above each row and a name below it."""
    step = CAPTION + CELL + FOOT
    width, height = 2 * EDGE + len(titles) * (CELL + GAP) - GAP, HEAD + rows * step
    figure = Figure(figsize=(width, height))
    lefts = [EDGE + column * (CELL + GAP) for column in range(len(titles))]

    def cell(left: float, row: int) -> Axes:
        bottom = height - HEAD - row * step - CAPTION - CELL
        ax = figure.add_axes((left / width, bottom / height, CELL / width, CELL / height))
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        return ax

    for left, title in zip(lefts, titles, strict=True):
        figure.text(left / width, 1 - 0.2 / height, title, color=FAINT, fontsize=9, va="center")
    return figure, [[cell(left, row) for left in lefts] for row in range(rows)]


def show(ax: Axes, image: Image.Image, frame: str | None = None) -> None:
    ax.imshow(image.convert("RGB"), interpolation="bicubic")
    if frame:
        ax.spines[:].set(visible=True, color=frame, linewidth=1.5)


def tint(ax: Axes, mask: Image.Image, colour: str) -> None:
    inside = np.asarray(mask.convert("L")) > 127
    if not inside.any():  # an absent subject
        return
    ax.imshow(np.dstack([np.broadcast_to(to_rgb(colour), (*inside.shape, 3)), 0.4 * inside]), interpolation="nearest")
    ax.contour(inside, levels=[0.5], colors=[colour], linewidths=1.2)


def caption(ax: Axes, text: str, colour: str = INK, align: str = "left") -> None:
    ax.set_title(text, loc=align, color=colour, fontsize=10, pad=5)


def level(ax: Axes, value: float, name: str = "") -> None:
    """A faint horizontal line to compare with, named at its right end."""
    ax.axhline(value, color=FAINT, linewidth=1, linestyle=(0, (1, 2)))
    if name:
        place = ax.get_yaxis_transform()
        ax.text(1.01, value, name, transform=place, color=FAINT, fontsize=8, va="center")


def curves(ax: Axes, log_history: Sequence[dict], metrics: dict[str, tuple[str, str]]) -> None:
    """Each metric in its colour: training as a solid running mean over its faint points, evaluation dashed."""
    named = {}
    for metric, (name, colour) in metrics.items():
        for prefix, part in (("", "train"), ("eval_", "eval")):
            key = prefix + metric
            logged = [(entry["step"], entry[key]) for entry in log_history if key in entry]
            if not logged:
                continue
            steps, values = np.array(logged, float).T
            if prefix:
                (line,) = ax.plot(steps, values, color=colour, linestyle="--", marker="o", markersize=4, linewidth=1)
            else:
                ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                (line,) = ax.plot(steps, running_mean(values), color=colour, linewidth=1.8)
            named.setdefault(name or part, line)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(colors=INK, labelsize=8, length=3)
    ax.grid(axis="y", alpha=0.15)
    ax.title.set(fontsize=10, color=INK)
    ax.set_xlabel("step", fontsize=8, color=INK)
    if named:
        below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(named))
        ax.legend(named.values(), named.keys(), frameon=False, fontsize=8, labelcolor=INK, **below)
    else:
        ax.set_xticks([])
        ax.text(0.5, 0.7, "not logged", transform=ax.transAxes, color=FAINT, ha="center")


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the last tenth of the points so far: a look at the trend that does not see ahead."""
    window = max(1, len(values) // 10)
    return np.array([values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))])


def save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white")
