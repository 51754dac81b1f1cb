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
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    for ax, regime in zip(figure.subplots(1, len(TUNED_REGIMES), sharey=True), TUNED_REGIMES, strict=True):
        for method, colour in COLOURS.items():
            points = [(means["residual"], means["identity"]) for means in tried.get((method, regime), [])]
            if points:
                ax.scatter(*zip(*points, strict=True), s=9, color=colour, alpha=0.5, linewidths=0)
                ax.step(*zip(*frontier(points), strict=True), where="post", color=colour, label=method, linewidth=1.4)
        ax.plot(base["residual"], base["identity"], "k*", markersize=10, label="base")
        ax.axvline(base["residual"] + WORSE, color="0.6", linewidth=1, linestyle=":")
        ax.set(title=regime, xlabel="residual (how far pictures are spoilt)", xticks=(0.04, 0.06, 0.08, 0.1))
        ax.set(xlim=(0.04, 0.1), ylim=(0.65, 0.95))
        spoilt = [means for (_, of), points in tried.items() if of == regime for means in points]
        spoilt = [means for means in spoilt if means["residual"] > 0.1 or means["identity"] < 0.65]
        ax.text(0.99, 0.01, f"{len(spoilt)} points are outside", ha="right", transform=ax.transAxes, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("identity")
    handles = {
        label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white")


def draw_main(results: Sequence[dict], path: Path):
    """Identity and leakage on test scenes with their intervals: a column for each regime, a colour for each method."""
    cells = by_cell(results)
    regimes = [regime for regime in MAIN_REGIMES if (regime, "dpo") in cells]
    base = cells[BASE]
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    for ax, name in zip(figure.subplots(1, 2), ("identity", "leakage"), strict=True):
        mean, low, high = interval([*base[name].values()])
        ax.axhspan(low, high, color="0.92", zorder=0)
        ax.axhline(mean, color="0.6", linewidth=1, zorder=0, label="base")
        for column, regime in enumerate(regimes):
            methods = [method for method in COLOURS if (regime, method) in cells]
            for place, method in enumerate(methods):
                runs = [*cells[regime, method][name].values()]
                mean, low, high = interval(runs)
                x = column + 0.13 * (place - (len(methods) - 1) / 2)
                few = {"markerfacecolor": "white"} if len(runs) == 1 else {}  # an interval over scenes alone
                ax.errorbar(
                    x, mean, [[mean - low], [high - mean]], fmt="o", color=COLOURS[method], label=method, ms=5, **few
                )
        ax.set(title=name, xticks=range(len(regimes)), xticklabels=regimes)
        ax.tick_params("x", rotation=15)
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    figure.legend(
        [first[label] for label in dict.fromkeys(labels)],
        dict.fromkeys(labels),
        loc="outside right center",
        frameon=False,
        fontsize=8,
    )
    figure.savefig(path, dpi=110, facecolor="white")


def main():
    draw_frontier([*stored("tune").values()], IMAGES / "sprites_frontier.png")
    draw_main(at_chosen_points("main"), IMAGES / "sprites_main.png")


if __name__ == "__main__":
    main()
