# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
The stored runs of the comparison as figures, `docs/images/sprites_*.png`.

    python -m examples.sprites.figures
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .intervals import interval
from .report import BASE, WORSE, at_chosen_points, base_of, by_cell, points_of
from .runs import MAIN_REGIMES, METHODS, TUNED_REGIMES, stored


IMAGES = Path("docs/images")
COLOURS = dict(
    zip(
        METHODS,
        ("#8a9199", "#22262b", "#1f6fb4", "#7b5ea7", "#d9a302", "#d95f02", "#b2182b", "#d6409f", "#1b8a5a"),
        strict=True,
    )
)
SPOILT, IDENTITY = (0.036, 0.085), (0.68, 0.96)  # what the frontier shows


def _within(value: float, ends: tuple[float, float]) -> bool:
    return ends[0] <= value <= ends[1]


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (drift, identity), those that no other beats in both, by drift."""
    best: list[tuple[float, float]] = []
    for drift, identity in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or identity > best[-1][1]:
            best.append((drift, identity))
    return best


def draw_frontier(results: Sequence[dict], path: Path):
    """Identity against what tuning does to the picture: all betas and steps of each method, a panel for each tuned regime."""
    base, tried = base_of(results), points_of(results)
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    axes = figure.subplots(2, len(TUNED_REGIMES) // 2 + 1, sharex=True, sharey=True).flat  # one or two for the legend
    for regime, ax in zip(TUNED_REGIMES, axes, strict=False):
        for method, colour in COLOURS.items():
            points = [(means["residual"], means["identity"]) for means in tried.get((method, regime), [])]
            if points:
                ax.scatter(*zip(*points, strict=True), s=9, color=colour, alpha=0.5, linewidths=0)
                ax.step(*zip(*frontier(points), strict=True), where="post", color=colour, label=method, linewidth=1.4)
        ax.plot(base["residual"], base["identity"], "k*", markersize=10, label="base")
        ax.axvline(base["residual"] + WORSE, color="0.6", linewidth=1, linestyle=":")
        ax.set(title=regime, xlim=SPOILT, ylim=IDENTITY)
        ax.tick_params(labelbottom=True, labelleft=True)
        points = [means for (_, of), points in tried.items() if of == regime for means in points]
        inside = [_within(means["residual"], SPOILT) and _within(means["identity"], IDENTITY) for means in points]
        ax.text(
            0.99, 0.01, f"{inside.count(False)} points are outside", ha="right", transform=ax.transAxes, fontsize=8
        )
        ax.spines[["top", "right"]].set_visible(False)
    handles = {
        label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    for ax in axes:  # that are left
        ax.axis("off")
        ax.legend(handles.values(), handles.keys(), loc="center", frameon=False)
    figure.supxlabel("residual (how far pictures are spoilt)", fontsize=10)
    figure.supylabel("identity", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white")


def draw_main(results: Sequence[dict], path: Path):
    """Identity above leakage, on test scenes, with intervals: a column for each regime, a colour for each method."""
    cells = by_cell(results)
    regimes = [regime for regime in MAIN_REGIMES if (regime, "dpo") in cells]
    base = cells[BASE]
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    for ax, name in zip(figure.subplots(2, 1, sharex=True), ("identity", "leakage"), strict=True):
        mean, low, high = interval([*base[name].values()])
        ax.axhspan(low, high, color="0.92", zorder=0)
        ax.axhline(mean, color="0.6", linewidth=1, zorder=0, label="base")
        for column, regime in enumerate(regimes):
            methods = [method for method in COLOURS if (regime, method) in cells]
            for place, method in enumerate(methods):
                runs = [*cells[regime, method][name].values()]
                mean, low, high = interval(runs)
                x = column + (place - (len(methods) - 1) / 2) / (len(COLOURS) + 2)
                few = {"markerfacecolor": "white"} if len(runs) == 1 else {}  # an interval over scenes alone
                ax.errorbar(
                    x, mean, [[mean - low], [high - mean]], fmt="o", color=COLOURS[method], label=method, ms=5, **few
                )
            if column:
                ax.axvline(column - 0.5, color="0.85", linewidth=1)
        ax.set(ylabel=name, xticks=range(len(regimes)), xticklabels=regimes, xlim=(-0.5, len(regimes) - 0.5))
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    shown = [label for label in ("base", *COLOURS) if label in first]
    figure.legend([first[label] for label in shown], shown, loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=110, facecolor="white")


def main():
    draw_frontier([*stored("tune").values()], IMAGES / "sprites_frontier.png")
    draw_main(at_chosen_points("main"), IMAGES / "sprites_main.png")


if __name__ == "__main__":
    main()
