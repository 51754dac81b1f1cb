# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What the stored runs of the comparison say: operating points, tables with intervals, figures.

    python -m examples.sprites.report            # prints the tables, draws docs/images/sprites_*.png
    python -m examples.sprites.report --choose   # chooses the operating points out of the stage `tune`
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .compare import MAIN_REGIMES, METHODS, PER_SCENE, RESULTS, TUNED_REGIMES, planned, stored
from .intervals import interval


IMAGES = Path("docs/images")
WORSE = 0.01  # by how much a chosen point may raise the residual over the base's: nothing wins by wrecking the picture
COLOURS = dict(
    zip(METHODS, ("#8a9199", "#22262b", "#1f6fb4", "#7b5ea7", "#d9a302", "#d95f02", "#b2182b", "#1b8a5a"), strict=True)
)


def choose(results: Sequence[dict], worse: float = WORSE) -> dict[str, dict[str, dict]]:
    """
    The operating point of each method in each regime in which it was tuned: beta, weight of the SFT term and steps with the
    highest identity, and of equal ones with the lowest residual, among those that leave the pictures as good as the base's.

    Args:
        results (`Sequence[dict]`):
            Runs of the stage `tune`.
        worse (`float`, *optional*, defaults to `0.01`):
            By how much the residual may exceed the base's.
    """
    chosen = defaultdict(dict)
    for (method, regime), points in points_of(results).items():
        spared = [p for p in points if p["residual"] <= base_of(results)["residual"] + worse]
        if spared:
            best = max(spared, key=lambda point: (point["identity"], -point["residual"]))
            chosen[method][regime] = {name: best[name] for name in ("beta", "sft", "steps")}
    return chosen


def points_of(results: Sequence[dict]) -> dict[tuple[str, str], list[dict]]:
    """All that was tried of each (method, regime): beta, SFT weight and steps, and the means over the scenes there."""
    points = defaultdict(list)
    for result in results:
        run = result["run"]
        if run["method"] != "base":
            points[run["method"], run["regime"]] += [
                {"beta": run["beta"], "sft": run["sft"], "steps": steps, **means}
                for steps, means in measured(result).items()
            ]
    return points


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


def by_cell(results: Sequence[dict]) -> dict[tuple[str, str], dict[str, dict[int, np.ndarray]]]:
    """Values of each scene by (regime, method), then by measure and seed."""
    cells: dict = defaultdict(lambda: defaultdict(dict))
    for result in results:
        run = result["run"]
        for name in PER_SCENE:
            cells[run["regime"], run["method"]][name][run["seed"]] = np.array(result["scenes"][name])
    return cells


def rows_of(cells: dict) -> Iterator[tuple[str, str, dict[str, dict[int, np.ndarray]]]]:
    """Regime, method and cell, in the order of the tables."""
    for regime in MAIN_REGIMES:
        for method in ("base", *METHODS):
            if cell := cells.get((regime, method)):
                yield regime, method, cell


def in_brackets(values: tuple[float, float, float], form: str) -> str:
    return "{:{form}} [{:{form}}, {:{form}}]".format(*values, form=form)


def main_table(results: Sequence[dict]) -> str:
    """A row for each regime and method: every measure with its interval over seeds and scenes."""
    lines = [f"| regime | method | seeds | {' | '.join(PER_SCENE)} |", "| --- " * (3 + len(PER_SCENE)) + "|"]
    for regime, method, cell in rows_of(by_cell(results)):
        measures = [in_brackets(interval([*cell[name].values()]), ".3f") for name in PER_SCENE]
        lines.append(f"| {regime} | {method} | {len(cell['identity'])} | {' | '.join(measures)} |")
    return "\n".join(lines)


def contrast_table(results: Sequence[dict]) -> str:
    """
    What each method differs by from `dpo` on the same seeds and scenes, and how identity and leakage changed in proportion to
    the base's.
    """
    cells = by_cell(results)
    base = next(cell for (_, method), cell in cells.items() if method == "base")
    lines = [
        f"| regime | method | seeds | {' | '.join(f'{name} - dpo' for name in PER_SCENE)} | identity from the base | leakage from the base |"
    ]
    lines.append("| --- " * (5 + len(PER_SCENE)) + "|")
    for regime, method, cell in rows_of(cells):
        if method == "base":
            continue
        dpo = cells.get((regime, "dpo"), {})
        shared = sorted(cell["identity"].keys() & dpo.get("identity", {}).keys()) if method != "dpo" else []
        shown = [
            in_brackets(interval([cell[name][seed] - dpo[name][seed] for seed in shared]), "+.3f") if shared else ""
            for name in PER_SCENE
        ]
        for name in ("identity", "leakage"):
            (of_base,) = base[name].values()
            shown.append(in_brackets(change([*cell[name].values()], of_base), "+.1%"))
        seeds = len(shared) or len(cell["identity"])
        lines.append(f"| {regime} | {method} | {seeds} | {' | '.join(shown)} |")
    return "\n".join(lines)


def change(runs: Sequence[np.ndarray], base: np.ndarray) -> tuple[float, float, float]:
    """By what share of the base's mean a mean differs, and its interval, to first order in what both are uncertain by."""
    ratio = np.mean(runs) / base.mean()
    return tuple(ratio - 1 + value for value in interval([(run - ratio * base) / base.mean() for run in runs]))


def other_table(results: Sequence[dict]) -> str:
    """What else was measured, as means over the seeds; scenes of three, of four and of two unseen subjects on the first."""
    attributes = ("position", "shape", "colour", "pattern")
    errors = [f"error/{image}/{place}" for image in ("chosen", "rejected") for place in ("inside", "outside")]
    kinds = ("3", "4", "2-unseen")
    names = (*attributes, *(f"identity of {kind}" for kind in kinds), *errors, "gradient factor", "seconds")
    lines = [f"| regime | method | {' | '.join(names)} |", "| --- " * (2 + len(names)) + "|"]
    groups = defaultdict(list)
    for result in results:
        groups[result["run"]["regime"], result["run"]["method"]].append(result)
    for regime, method, _ in rows_of(by_cell(results)):
        runs = groups[regime, method]
        values = [[run["means"][name] for run in runs] for name in attributes]
        values += [[run[f"means-{kind}"]["identity"] for run in runs if f"means-{kind}" in run] for kind in kinds]
        values += [[run["errors"][name] for run in runs if "errors" in run] for name in errors]
        values += [[run["train"]["gradient_factor"] for run in runs if "train" in run], [r["seconds"] for r in runs]]
        forms = [".3f"] * (len(names) - 1) + [".0f"]
        shown = [f"{np.mean(value):{form}}" if value else "" for value, form in zip(values, forms, strict=True)]
        lines.append(f"| {regime} | {method} | {' | '.join(shown)} |")
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


def best_table(results: Sequence[dict], worse: float = WORSE) -> str:
    """For each method the point that `choose` takes in each tuned regime, of how many."""
    chosen, points = choose(results, worse), points_of(results)
    lines = ["| method | " + " | ".join(TUNED_REGIMES) + " |", "| --- " * (1 + len(TUNED_REGIMES)) + "|"]
    for method in METHODS:
        cells = []
        for regime in TUNED_REGIMES:
            tried = points.get((method, regime), [])
            best = chosen.get(method, {}).get(regime)
            if best is None:
                cells.append(f"none of {len(tried)}" if tried else "")
                continue
            point = next(point for point in tried if point.items() >= best.items())
            sft = f", SFT {best['sft']:g}" if best["sft"] else ""
            cells.append(
                f"{point['identity']:.3f} (residual {point['residual']:.3f}; beta {best['beta']:g}{sft}, "
                f"{best['steps']} steps; of {len(tried)})"
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
            against = in_brackets(interval([difference]), "+.3f")
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


TABLES: dict[str, dict[str, Callable[[Sequence[dict]], str]]] = {
    "tune": {
        "all runs": tune_table,
        **{
            f"best points with a residual of at most {worse} over the base's": partial(best_table, worse=worse)
            for worse in (WORSE / 2, WORSE, 2 * WORSE)
        },
    },
    "main": {
        "means and intervals": main_table,
        "against dpo and the base": contrast_table,
        "what else was measured": other_table,
    },
    "ablate": {"all runs": ablate_table},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--choose", action="store_true", help="choose the operating points out of the stage `tune`")
    args = parser.parse_args()
    tuned = [*stored("tune").values()]
    if args.choose:
        (RESULTS / "operating_points.json").write_text(json.dumps(choose(tuned), indent=2) + "\n")
    for stage, tables in TABLES.items():
        found = tuned if stage == "tune" else at_chosen_points(stage)
        if found:
            print(f"\n## {stage}: {len(found)} of {len(planned(stage))} runs")
            for title, table in tables.items():
                print(f"\n### {title}\n\n{table(found)}")
    draw_frontier(tuned, IMAGES / "sprites_frontier.png")
    draw_main(at_chosen_points("main"), IMAGES / "sprites_main.png")


if __name__ == "__main__":
    main()
