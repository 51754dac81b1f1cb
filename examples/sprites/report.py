# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What the stored runs of the comparison say: operating points, tables with intervals, figures.

    python -m examples.sprites.report            # prints the tables, draws docs/images/sprites_*.png
    python -m examples.sprites.report --choose   # chooses the operating points out of the stage `tune`
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .compare import MAIN_REGIMES, METHODS, PER_SCENE, RESULTS, TUNED_REGIMES, planned, stored


IMAGES = Path("docs/images")
WORSE = 0.01  # by how much a chosen point may raise the residual over the base's: nothing wins by wrecking the picture
COLOURS = dict(
    zip(METHODS, ("#8a9199", "#22262b", "#1f6fb4", "#7b5ea7", "#d9a302", "#d95f02", "#b2182b", "#1b8a5a"), strict=True)
)


def choose(results: Sequence[dict]) -> dict[str, dict[str, dict]]:
    """
    The operating point of each method in each regime in which it was tuned: beta, weight of the SFT term and steps with the
    highest identity, among those that leave the pictures as good as the base's (by `WORSE`).
    """
    limit = base_of(results)["residual"] + WORSE
    spared = defaultdict(dict)
    for result in results:
        run = result["run"]
        for steps, means in measured(result).items():
            if run["method"] != "base" and means["residual"] <= limit:
                spared[run["method"], run["regime"]][run["beta"], run["sft"], steps] = means["identity"]
    chosen = defaultdict(dict)
    for (method, regime), points in spared.items():
        best = max(points, key=points.get)
        chosen[method][regime] = dict(zip(("beta", "sft", "steps"), best, strict=True))
    return chosen


def base_of(results: Sequence[dict]) -> dict[str, float]:
    """Means of the base over the scenes."""
    return next(result["means"] for result in results if result["run"]["method"] == "base")


def at_chosen_points(stage: str) -> list[dict]:
    """Stored runs of a stage, without those at points that further tuning took back."""
    found = stored(stage)
    return [found[run.key] for run in planned(stage) if run.key in found] if found else []


def measured(result: dict) -> dict[int, dict[str, float]]:
    """Means over the scenes by the steps after which they were drawn."""
    along = {int(steps): means for steps, means in result.get("curve", {}).items()}
    return {**along, result["run"]["steps"]: result["means"]}


def interval(runs: Sequence[np.ndarray], draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """
    Mean over runs and scenes, and its 95 % interval by bootstrap over both.

    Args:
        runs (`Sequence[np.ndarray]`):
            One array for each seed of training, with a value for each scene; the scenes are the same in all.
    """
    values = np.stack(runs)
    rng = np.random.default_rng(seed)
    means = [
        values[
            np.ix_(rng.integers(len(values), size=len(values)), rng.integers(values.shape[1], size=values.shape[1]))
        ].mean()
        for _ in range(draws)
    ]
    return float(values.mean()), *map(float, np.percentile(means, [2.5, 97.5]))


def by_cell(results: Sequence[dict]) -> dict[tuple[str, str], dict[str, dict[int, np.ndarray]]]:
    """Values of each scene by (regime, method), then by measure and seed."""
    cells: dict = defaultdict(lambda: defaultdict(dict))
    for result in results:
        run = result["run"]
        for name in PER_SCENE:
            cells[run["regime"], run["method"]][name][run["seed"]] = np.array(result["scenes"][name])
    return cells


def main_table(results: Sequence[dict]) -> str:
    """A row for each regime and method, with intervals over seeds and scenes; and the paired difference from DPO."""
    cells = by_cell(results)
    lines = ["| regime | method | seeds | " + " | ".join(PER_SCENE) + " | identity against `dpo` |"]
    lines.append("| --- " * (len(PER_SCENE) + 4) + "|")
    for regime in MAIN_REGIMES:
        for method in ("base", *METHODS):
            cell = cells.get((regime, method))
            if not cell:
                continue
            shown = []
            for name in PER_SCENE:
                mean, low, high = interval([*cell[name].values()])
                shown.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
            against = ""
            dpo = cells.get((regime, "dpo"), {}).get("identity", {})
            if method not in ("base", "dpo") and (shared := sorted(cell["identity"].keys() & dpo.keys())):
                mean, low, high = interval([cell["identity"][seed] - dpo[seed] for seed in shared])
                against = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
            lines.append(f"| {regime} | {method} | {len(cell['identity'])} | {' | '.join(shown)} | {against} |")
    return "\n".join(lines)


def tune_table(results: Sequence[dict]) -> str:
    """A row for each run on validation scenes, with its measures after the steps at which scenes were drawn."""
    lines = [
        "| regime | method | beta | SFT | steps | identity | leakage | background | residual | gradient factor | seconds |"
    ]
    lines.append("| --- " * 11 + "|")
    order = {name: i for i, name in enumerate(("base", *METHODS))}
    for result in sorted(
        results, key=lambda r: (r["run"]["regime"], order[r["run"]["method"]], r["run"]["sft"], r["run"]["beta"])
    ):
        run, points = result["run"], measured(result)
        measures = " | ".join(", ".join(f"{means[name]:.3f}" for means in points.values()) for name in PER_SCENE)
        factor = f"{result['train']['gradient_factor']:.2f}" if "train" in result else ""
        steps = ", ".join(map(str, points)) if "train" in result else "0"
        lines.append(
            f"| {run['regime']} | {run['method']} | {run['beta']:g} | {run['sft']:g} | {steps} | {measures} | {factor} | "
            f"{result['seconds']:.0f} |"
        )
    return "\n".join(lines)


def best_table(results: Sequence[dict]) -> str:
    """For each method the best point of each tuned regime that does not wreck the picture, of how many."""
    base = base_of(results)
    lines = ["| method | " + " | ".join(TUNED_REGIMES) + " |", "| --- " * (1 + len(TUNED_REGIMES)) + "|"]
    for method in METHODS:
        cells = []
        for regime in TUNED_REGIMES:
            runs = [r for r in results if (r["run"]["regime"], r["run"]["method"]) == (regime, method)]
            points = [(means, run["run"], steps) for run in runs for steps, means in measured(run).items()]
            spared = [point for point in points if point[0]["residual"] <= base["residual"] + WORSE]
            if not spared:
                cells.append(f"none of {len(points)}" if points else "")
                continue
            means, run, steps = max(spared, key=lambda point: point[0]["identity"])
            sft = f", SFT {run['sft']:g}" if run["sft"] else ""
            cells.append(
                f"{means['identity']:.3f} (background {means['background_error']:.3f}; beta {run['beta']:g}{sft}, "
                f"{steps} steps; of {len(points)})"
            )
        if any(cells):
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ablate_table(results: Sequence[dict]) -> str:
    """A row for each run: its settings, its measures, and how its identity differs scene by scene from the map as it is."""
    lines = ["| regime | settings | " + " | ".join(PER_SCENE) + " | identity against the map as it is |"]
    lines.append("| --- " * (len(PER_SCENE) + 3) + "|")
    whole = {r["run"]["regime"]: r["scenes"]["identity"] for r in results if not r["run"]["settings"]}
    for result in results:
        run, scenes = result["run"], result["scenes"]
        measures = " | ".join(f"{np.mean(scenes[name]):.3f}" for name in PER_SCENE)
        against = ""
        if run["settings"] and run["regime"] in whole:
            difference = np.subtract(scenes["identity"], whole[run["regime"]])
            against = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval([difference]))
        named = ", ".join(f"`{name}: {value}`" for name, value in run["settings"].items()) or "as it is"
        lines.append(f"| {run['regime']} | {named} | {measures} | {against} |")
    return "\n".join(lines)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (drift, identity), those that no other beats in both, by drift."""
    best: list[tuple[float, float]] = []
    for drift, identity in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or identity > best[-1][1]:
            best.append((drift, identity))
    return best


def draw_frontier(results: Sequence[dict], path: Path):
    """Identity against what tuning does to the picture: all betas and steps of each method, a panel for each tuned regime."""
    base = base_of(results)
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    for ax, regime in zip(figure.subplots(1, len(TUNED_REGIMES), sharey=True), TUNED_REGIMES, strict=True):
        for method, colour in COLOURS.items():
            runs = [r for r in results if (r["run"]["regime"], r["run"]["method"]) == (regime, method)]
            points = [(means["residual"], means["identity"]) for run in runs for means in measured(run).values()]
            if points:
                ax.scatter(*zip(*points, strict=True), s=9, color=colour, alpha=0.5, linewidths=0)
                ax.step(*zip(*frontier(points), strict=True), where="post", color=colour, label=method, linewidth=1.4)
        ax.plot(base["residual"], base["identity"], "k*", markersize=10, label="base")
        ax.axvline(base["residual"] + WORSE, color="0.6", linewidth=1, linestyle=":")
        ax.set(title=regime, xlabel="residual (how far pictures are spoilt)", xlim=(0.04, 0.1), ylim=(0.65, 0.95))
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
    base = next(cell for (_, method), cell in cells.items() if method == "base")
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
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--choose", action="store_true", help="choose the operating points out of the stage `tune`")
    args = parser.parse_args()
    tuned = [*stored("tune").values()]
    if args.choose:
        (RESULTS / "operating_points.json").write_text(json.dumps(choose(tuned), indent=2) + "\n")
    results = {"tune": tuned, **{stage: at_chosen_points(stage) for stage in ("main", "ablate")}}
    for stage, found in results.items():
        if found:
            print(f"\n## {stage}\n")
            print({"tune": tune_table, "main": main_table, "ablate": ablate_table}[stage](found))
            if stage == "tune":
                print(f"\n### best points\n\n{best_table(found)}")
    if results["tune"]:
        draw_frontier(results["tune"], IMAGES / "sprites_frontier.png")
    if results["main"]:
        draw_main(results["main"], IMAGES / "sprites_main.png")


if __name__ == "__main__":
    main()
