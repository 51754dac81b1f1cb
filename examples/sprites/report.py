# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What the stored runs of the comparison say: operating points, and tables with intervals.

    python -m examples.sprites.report            # prints the tables, and fills those of docs/sprites.md
    python -m examples.sprites.report --choose   # chooses the operating points out of the stage `tune`
"""

import argparse
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from .intervals import further_run, interval
from .runs import (
    BETAS,
    MAIN_REGIMES,
    METHODS,
    PER_SCENE,
    REPEATED_METHODS,
    REPEATED_REGIMES,
    RESULTS,
    TUNED_REGIMES,
    planned,
    stored,
)


ACCOUNT = Path("docs/sprites.md")
BASE = ("", "base")
WORSE = 0.01  # by how much a chosen point may raise the residual over the base's: nothing wins by wrecking the picture
LIMITS = (WORSE / 2, WORSE, 2 * WORSE)


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
    chosen, base = defaultdict(dict), base_of(results)
    for (method, regime), points in points_of(results).items():
        if spared := sparing(points, base, worse):
            best = max(spared, key=lambda point: (point["identity"], -point["residual"]))
            chosen[method][regime] = {name: best[name] for name in ("beta", "sft", "steps")}
    return chosen


def sparing(points: Sequence[dict], base: dict[str, float], worse: float) -> list[dict]:
    """Points that raise the residual by no more than `worse` over the base's."""
    return [point for point in points if point["residual"] <= base["residual"] + worse]


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
    """Values of each scene by (regime, method), then by measure and seed. The base, which knows no regime, is at `BASE`."""
    cells: dict = defaultdict(lambda: defaultdict(dict))
    for result in results:
        for name in PER_SCENE:
            cells[cell_of(result)][name][result["run"]["seed"]] = np.array(result["scenes"][name])
    return cells


def cell_of(result: dict) -> tuple[str, str]:
    method = result["run"]["method"]
    return BASE if method == "base" else (result["run"]["regime"], method)


def in_order(cells: dict[tuple[str, str], dict]) -> Iterator[tuple[str, str, dict]]:
    """Regime, method and cell, in the order of the tables: the base first."""
    for regime, method in (BASE, *itertools.product(MAIN_REGIMES, METHODS)):
        if cell := cells.get((regime, method)):
            yield regime, method, cell


def in_brackets(values: tuple[float, float, float], form: str) -> str:
    return "{:{form}} [{:{form}}, {:{form}}]".format(*values, form=form)


def at(method: str, point: dict) -> str:
    """An operating point in words."""
    sft = f", SFT {point['sft']:g}" if point["sft"] else ""
    beta = "" if method == "sft" else f"beta {point['beta']:g}{sft}, "
    return f"{beta}{point['steps']} steps"


def table(columns: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table in Markdown."""
    lines = [columns, *rows]
    written = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([written[0], "| --- " * len(columns) + "|", *written[1:]])


def main_table(results: Sequence[dict]) -> str:
    """A row for each regime and method: every measure with its interval over seeds and scenes."""
    rows = []
    runs = {cell_of(result): result["run"] for result in results}
    for regime, method, cell in in_order(by_cell(results)):
        measures = [in_brackets(interval([*cell[name].values()]), ".3f") for name in PER_SCENE]
        point = "" if method == "base" else f" ({at(method, runs[regime, method])})"
        rows.append([regime, method + point, len(cell["identity"]), *measures])
    return table(["regime", "method", "seeds", *PER_SCENE], rows)


def contrast_table(results: Sequence[dict], against: str = "dpo") -> str:
    """What each method differs by from another on the same seeds and scenes, where there are several of both."""
    cells = by_cell(results)
    rows = []
    for regime, method, cell in in_order(cells):
        other = cells.get((regime, against), {})
        shared = sorted(cell["identity"].keys() & other.get("identity", {}).keys())
        if len(shared) > 1 and method != against:
            shown = [
                in_brackets(interval([cell[name][seed] - other[name][seed] for seed in shared]), "+.3f")
                for name in PER_SCENE
            ]
            rows.append([regime, method, len(shared), *shown])
    return table(["regime", "method", "seeds", *PER_SCENE], rows)


def further_table(results: Sequence[dict]) -> str:
    """Between what a further run of each cell is to be expected, where several seeds are stored."""
    rows = []
    for regime, method, cell in in_order(by_cell(results)):
        runs = [[*cell[name].values()] for name in PER_SCENE]
        if len(runs[0]) > 1:
            ends = ["[{:.3f}, {:.3f}]".format(*further_run(np.mean(of_seeds, axis=1))) for of_seeds in runs]
            rows.append([regime, method, len(runs[0]), *ends])
    return table(["regime", "method", "seeds", *PER_SCENE], rows)


def change_table(results: Sequence[dict]) -> str:
    """By how much identity and leakage differ from the base's, in proportion, where there are several seeds."""
    cells = by_cell(results)
    base = cells[BASE]
    rows = []
    for regime, method, cell in in_order(cells):
        if len(cell["identity"]) > 1:
            shown = [
                in_brackets(change([*cell[name].values()], *base[name].values()), "+.1%")
                for name in ("identity", "leakage")
            ]
            rows.append([regime, method, len(cell["identity"]), *shown])
    return table(["regime", "method", "seeds", "identity", "leakage"], rows)


def change(runs: Sequence[np.ndarray], base: np.ndarray) -> tuple[float, float, float]:
    """By what share of the base's mean a mean differs, and its interval, to first order in what both are uncertain by."""
    ratio = np.mean(runs) / base.mean()
    return tuple(ratio - 1 + value for value in interval([(run - ratio * base) / base.mean() for run in runs]))


def means_table(results: Sequence[dict], columns: dict[str, Sequence[str]]) -> str:
    """
    A row for each regime and method: means over those runs in which it was measured.

    Args:
        columns (`dict[str, Sequence[str]]`):
            Where a column's value is in a result: its key, and the key in what is there.
    """
    rows, groups = [], defaultdict(list)
    for result in results:
        groups[cell_of(result)].append(result)
    for regime, method, runs in in_order(groups):
        shown = []
        for part, name in columns.values():
            values = [run[part][name] for run in runs if part in run]
            shown.append(f"{np.mean(values):.3f}" if values else "")
        if any(shown):
            rows.append([regime, method, *shown])
    return table(["regime", "method", *columns], rows)


def tune_table(results: Sequence[dict]) -> str:
    """A row for each run on validation scenes, with its measures after the steps at which scenes were drawn."""
    rows = []
    order = {name: i for i, name in enumerate(("base", *METHODS))}
    for result in sorted(
        results, key=lambda r: (r["run"]["regime"], order[r["run"]["method"]], r["run"]["sft"], r["run"]["beta"])
    ):
        run, points = result["run"], measured(result)
        measures = [", ".join(f"{means[name]:.3f}" for means in points.values()) for name in PER_SCENE]
        factor = f"{result['train']['gradient_factor']:.2f}" if "train" in result else ""
        steps = ", ".join(map(str, points)) if "train" in result else "0"
        point = [run["regime"], run["method"], f"{run['beta']:g}", f"{run['sft']:g}", steps]
        rows.append([*point, *measures, factor, f"{result['seconds']:.0f}"])
    return table(
        ["regime", "method", "beta", "SFT", "steps", *PER_SCENE, "gradient factor", "seconds"],
        rows,
    )


def best_table(results: Sequence[dict], worse: float = WORSE) -> str:
    """For each method the point that `choose` takes in each tuned regime, of how many."""
    chosen, points = choose(results, worse), points_of(results)
    rows = []
    for method in METHODS:
        cells = []
        for regime in TUNED_REGIMES:
            tried = points.get((method, regime), [])
            best = chosen.get(method, {}).get(regime)
            if best is None:
                cells.append(f"none of {len(tried)}" if tried else "")
                continue
            point = next(point for point in tried if point.items() >= best.items())
            cells.append(
                f"{point['identity']:.3f} (residual {point['residual']:.3f}; {at(method, best)}; of {len(tried)})"
            )
        if any(cells):
            rows.append([method, *cells])
    return table(["method", *TUNED_REGIMES], rows)


def repeated_table(results: Sequence[dict]) -> str:
    """
    Identity at the best beta and number of steps, chosen for each seed out of its own runs, and how that differs from that of
    `dpo` on the same seeds; a seed counts when all of its runs are there. A column for each limit of what the residual may
    exceed the base's by; a method none of whose points keeps within it is left at the base.

    Args:
        results (`Sequence[dict]`):
            Runs of the stages `tune`, which has the base and the first seed, and `repeat`.
    """
    base, swept = base_of(results), defaultdict(list)
    for result in results:
        run = result["run"]
        if run["method"] in REPEATED_METHODS and run["beta"] in BETAS and not run["sft"]:
            swept[run["regime"], run["seed"]].append(result)

    def highest(points: Sequence[dict], worse: float) -> float:
        return max((point["identity"] for point in sparing(points, base, worse)), default=base["identity"])

    rows, whole = [], len(REPEATED_METHODS) * len(BETAS)
    for regime in REPEATED_REGIMES:
        tried = [points_of(found) for (of, _), found in swept.items() if of == regime and len(found) == whole]
        if len(tried) < 2:
            continue
        best = {
            method: np.array([[highest(points[method, regime], limit) for limit in LIMITS] for points in tried])
            for method in REPEATED_METHODS
        }
        for method, values in best.items():
            shown = {method: (values, ".3f")}
            if method != "dpo":
                shown[f"{method}, against `dpo`"] = values - best["dpo"], "+.3f"
            for name, (of_seeds, form) in shown.items():
                ends = (in_brackets(interval(of[:, None]), form) for of in of_seeds.T)
                rows.append([regime, name, len(of_seeds), *ends])
    return table(["regime", "method", "seeds", *(f"at most {limit:g}" for limit in LIMITS)], rows)


def ablate_table(results: Sequence[dict]) -> str:
    """A row for each run: its settings, its measures, and how its identity differs scene by scene from the map as it is."""
    rows = []
    whole = {r["run"]["regime"]: r["scenes"]["identity"] for r in results if not r["run"]["settings"]}
    for result in results:
        run, scenes = result["run"], result["scenes"]
        measures = [f"{np.mean(scenes[name]):.3f}" for name in PER_SCENE]
        against = ""
        if run["settings"] and run["regime"] in whole:
            difference = np.subtract(scenes["identity"], whole[run["regime"]])
            against = in_brackets(interval([difference]), "+.3f")
        named = ", ".join(f"`{name}: {value}`" for name, value in run["settings"].items()) or "as it is"
        rows.append([run["regime"], named, *measures, against])
    return table(["regime", "settings", *PER_SCENE, "identity against the map as it is"], rows)


ATTRIBUTES = {name: ("means", name) for name in ("position", "shape", "colour", "pattern", "extra")}
ENDS = {
    "three": ("means-3", "identity"),
    "four": ("means-4", "identity"),
    "two unseen": ("means-2-unseen", "identity"),
}
TRAINING = {
    **{
        f"{image}, {place}": ("errors", f"error/{image}/{place}")
        for image in ("chosen", "rejected")
        for place in ("inside", "outside")
    },
    "gradient factor": ("train", "gradient_factor"),
}
TABLES: dict[str, dict[str, Callable[[Sequence[dict]], str]]] = {
    "tune": {
        "all runs": tune_table,
        **{
            f"best points with a residual of at most {worse} over the base's": partial(best_table, worse=worse)
            for worse in LIMITS
        },
    },
    "main": {
        "means and intervals": main_table,
        "difference from dpo": contrast_table,
        **{f"difference from {method}": partial(contrast_table, against=method) for method in ("mask", "focus")},
        "change from the base": change_table,
        "where a further run is to be expected": further_table,
        "attributes": partial(means_table, columns=ATTRIBUTES),
        "identity of three, of four and of two unseen subjects, first seed": partial(means_table, columns=ENDS),
        "change of the error on held-out pairs, by image and place, and the last gradient factor": partial(
            means_table, columns=TRAINING
        ),
    },
    "repeat": {
        "best points of each seed, by how much pictures may be spoilt": lambda found: repeated_table(
            [*runs_of("tune"), *found]
        )
    },
    "ablate": {"all runs": ablate_table},
}


def runs_of(stage: str) -> list[dict]:
    """What is stored of a stage; of later stages than `tune` what is at the chosen points."""
    return [*stored("tune").values()] if stage == "tune" else at_chosen_points(stage)


def filled(page: str) -> str:
    """A page with the table between each `<!-- STAGE: TITLE -->` and `<!-- end -->` made anew."""

    def table(match: re.Match) -> str:
        _, stage, title = match.groups()
        return f"{match[1]}\n\n{TABLES[stage][title](runs_of(stage))}\n\n<!-- end -->"

    return re.sub(r"(<!-- (\w+): (.+?) -->)(?:(?!<!--).)*<!-- end -->", table, page, flags=re.DOTALL)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--choose", action="store_true", help="choose the operating points out of the stage `tune`")
    if parser.parse_args().choose:
        (RESULTS / "operating_points.json").write_text(json.dumps(choose(runs_of("tune")), indent=2) + "\n")
    for stage, tables in TABLES.items():
        if found := runs_of(stage):
            done = stored(stage)
            left = sum(run.key not in done for run in planned(stage))
            print(f"\n## {stage}: {len(found)} runs; {left} of those planned are left")
            for title, table in tables.items():
                print(f"\n### {title}\n\n{table(found)}")
    ACCOUNT.write_text(filled(ACCOUNT.read_text()))


if __name__ == "__main__":
    main()
