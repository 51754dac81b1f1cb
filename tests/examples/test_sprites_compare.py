# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Mechanics of the comparison. That one method wins is nothing to test."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

from examples.sprites import compare, figures, pairs, report, runs
from examples.sprites.data import REGIMES, quality
from examples.sprites.intervals import further_run, interval
from examples.sprites.pipeline import untrained_pipeline, untrained_vae
from examples.sprites.runs import METHODS, Run
from examples.sprites.sampling import scenes_of
from examples.sprites.world import draw_scene, generator, prompt_of
from trl_focus import FocusDPOTrainer
from trl_focus.data import validate_dataset


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A small untrained base, eight pairs, and runs of two steps."""

    def base():
        torch.manual_seed(0)
        pipeline = untrained_pipeline(untrained_vae().eval(), width=32)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    monkeypatch.setattr(compare, "load_base", base)
    monkeypatch.setattr(pairs, "CACHE", tmp_path / "pairs")
    monkeypatch.setattr(compare, "CURVE", (2, 4))
    monkeypatch.setattr(compare, "BATCH_SIZE", 4)
    for function in (compare.pairs_of, scenes_of):
        function.cache_clear()
    pairs_of = compare.pairs_of
    monkeypatch.setattr(
        compare,
        "pairs_of",
        lambda regime, seed, relevant_only, split="train", n_pairs=8: pairs_of(regime, seed, relevant_only, split, 8),
    )
    return base


def test_methods_see_the_same_pairs_noise_and_levels(small, monkeypatch):
    seen = {}
    noise = FocusDPOTrainer._noise

    def record(self, x_BCHW, seeds):
        noised = noise(self, x_BCHW, seeds)
        seen.setdefault(name, []).append((tuple(seeds), noised.noisy_BCHW.sum().item()))
        return noised

    monkeypatch.setattr(FocusDPOTrainer, "_noise", record)
    for name in METHODS:
        compare.train(Run("nuisance-weak", name, 100.0, steps=4, seed=3))
    assert seen.keys() == METHODS.keys() and len(seen["dpo"]) == 4
    assert all(steps == seen["dpo"] for steps in seen.values())


def test_a_run_ends_in_one_line_and_is_not_run_again(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(
        compare, "planned", lambda stage: [Run("minimal", "base", 0.0), Run("minimal", "focus", 100.0, 1.0, steps=4)]
    )
    execute = compare.execute
    monkeypatch.setattr(compare, "execute", lambda run, split, n_scenes: execute(run, split, 2))
    monkeypatch.setattr("sys.argv", ["compare", "tune"])
    compare.main()
    assert capsys.readouterr().out.count("\n") == 2
    base, focus = map(json.loads, (tmp_path / "results/tune.jsonl").read_text().splitlines())
    assert set(focus["curve"]) == {"2"} and len(focus["scenes"]["identity"]) == 2
    assert focus["errors"].keys() == {f"error/{i}/{p}" for i in ("chosen", "rejected") for p in ("inside", "outside")}
    assert any(abs(value) > 0 for value in focus["errors"].values())
    assert base["run"]["method"] == "base" and "errors" not in base
    compare.main()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("sys.argv", ["compare", "tune", "--methods", "base", "--again"])
    compare.main()  # draws the same scenes again
    again = capsys.readouterr().out
    assert again.count(": one seed is stored") == len(runs.PER_SCENE)
    assert len((tmp_path / "results/tune.jsonl").read_text().splitlines()) == 2
    monkeypatch.setattr("sys.argv", ["compare", "tune", "--methods", "dop"])
    with pytest.raises(SystemExit, match="No run of `tune` is of these. .*methods: base, sft, dpo"):
        compare.main()


def test_a_run_that_fails_in_a_process_spoils_no_other():
    ended = []
    with pytest.raises(RuntimeError, match="1 of 3 runs failed") as failure:
        for value in compare.each_result(int, ["1", "x", "3"], processes=2):
            ended.append(value)
    assert sorted(ended) == [1, 3] and isinstance(failure.value.__cause__, ValueError)


def test_runs_that_land_elsewhere_are_told_so():
    before = [result("dpo", identity=identity, seed=seed) for seed, identity in enumerate((0.4, 0.5, 0.6))]

    def identity_of(now, stated):
        return [*compare.against_stored({"means": dict.fromkeys(runs.PER_SCENE, now)}, stated)][0]

    width = 4.303 * 0.1 * (4 / 3) ** 0.5  # Student's t of two degrees of freedom
    stated = f"  identity: stated [{0.5 - width:.3f}, {0.5 + width:.3f}], now "
    assert identity_of(0.6, before) == stated + "0.600: inside"
    assert identity_of(0.5 + 1.01 * width, before) == stated + f"{0.5 + 1.01 * width:.3f}: OUTSIDE"
    assert identity_of(0.8, before[:1]) == "  identity: stored 0.400, now 0.800: one seed is stored"


def test_held_out_errors_are_of_validation_pairs(small, monkeypatch):
    asked, pairs_of = [], compare.pairs_of
    monkeypatch.setattr(
        compare, "pairs_of", lambda *args, **settings: asked.append(args) or pairs_of(*args, **settings)
    )
    compare.execute(Run("minimal", "dpo", 100.0, steps=2), "validation", 1, curve=False)
    assert asked[-1][3] == "validation" and all("validation" not in args for args in asked[:-1])


def test_errors_do_not_change_before_training(small, tmp_path):
    pairs = compare.pairs_of("minimal", 0, False)
    trainer = FocusDPOTrainer(
        small(), args=compare.config_of(Run("minimal", "dpo", 100.0, steps=4), str(tmp_path)), train_dataset=pairs
    )
    assert set(compare.error_changes(trainer, pairs).values()) == {0.0}


def test_main_contrasts_cover_all_cells_at_their_points(monkeypatch):
    tuned, mixed = {"beta": 30.0, "sft": 0.1, "steps": 80}, {"beta": 50.0, "sft": 0.0, "steps": 40}
    points = {method: {runs.TUNED_REGIMES[0]: tuned, "mixed": mixed} for method in METHODS}
    points["sft"] = {runs.TUNED_REGIMES[0]: tuned}  # spoils the pictures of another regime at every point
    monkeypatch.setattr(runs, "operating_points", lambda: points)
    base, *found = runs.planned("main")
    assert base.method == "base" and len({run.key for run in found}) == len(found)
    for run in found:
        point = tuned if run.regime == runs.TUNED_REGIMES[0] else mixed
        assert (run.beta, run.sft, run.steps) == tuple(point.values())
    cells = {(run.regime, run.method): 0 for run in found}
    for run in found:
        cells[run.regime, run.method] += 1
    for method in runs.MAIN_METHODS:
        for regime in REGIMES:
            assert cells.pop((regime, method)) == (5 if regime in runs.TUNED_REGIMES else 1)
    others = {(regime, method): 1 for method in runs.OTHER_METHODS for regime in runs.TUNED_REGIMES}
    assert cells == {cell: n for cell, n in others.items() if cell[1] != "sft" or cell[0] == runs.TUNED_REGIMES[0]}
    ablated = runs.planned("ablate")
    assert ablated[0].settings == {} and {run.method for run in ablated} == {runs.ABLATED}
    for run in ablated:
        assert compare.config_of(run, "x").to_dict().items() >= {**METHODS[runs.ABLATED], **run.settings}.items()


@pytest.mark.parametrize("regime", runs.SFT_REGIMES)
@pytest.mark.parametrize("sft", [0.0, runs.SFT_WEIGHT])
def test_every_method_is_swept_over_beta_with_and_without_the_sft_term(regime, sft):
    planned = [run for run in runs.planned("tune") if (run.regime, run.sft) == (regime, sft)]
    for method in METHODS.keys() - {"sft"}:
        betas = [run.beta for run in planned if run.method == method]
        assert max(betas) >= 30 * min(betas)
    assert ("sft" in {run.method for run in planned}) == (sft == 0)


# ---- The report ----


def result(method, beta=0.0, identity=0.5, residual=0.05, regime="on-policy", sft=0.0, seed=0, scenes=None):
    scenes = scenes or [identity] * 8
    return {
        "run": {
            "regime": regime,
            "method": method,
            "beta": beta,
            "sft": sft,
            "steps": 80,
            "seed": seed,
            "settings": {},
        },
        "means": {"identity": identity, "leakage": 0.1, "background_error": 0.02, "residual": residual},
        "scenes": dict.fromkeys(runs.PER_SCENE, scenes),
        "seconds": 1.0,
    }


def test_chosen_points_are_the_best_that_do_not_wreck_the_picture():
    first, other = runs.TUNED_REGIMES[:2]
    results = [result("base")]
    for beta, identity, residual in ((30.0, 0.9, 0.08), (100.0, 0.8, 0.05), (300.0, 0.7, 0.05)):
        results.append(result("dpo", beta, identity, residual, first))
    results += [result("dpo", 1000.0, 0.7, 0.05, other), result("sft", 50.0, 0.9, 0.08)]

    def point(beta, steps):
        return {"beta": beta, "sft": 0.0, "steps": steps}

    results.append(result("dpo", 80.0, 0.8, 0.051, first))  # no better than 100.0, and spoils a little more
    assert report.choose(results) == {"dpo": {first: point(100.0, 80), other: point(1000.0, 80)}}
    results[1]["curve"] = {
        "40": {**results[1]["means"], "identity": 0.85, "residual": 0.05}
    }  # stopped before it wrecks
    assert report.choose(results)["dpo"][first] == point(30.0, 40)


def test_frontier_keeps_what_no_other_point_beats():
    points = [(0.05, 0.8), (0.04, 0.7), (0.05, 0.9), (0.06, 0.85), (0.07, 0.95)]
    assert figures.frontier(points) == [(0.04, 0.7), (0.05, 0.9), (0.07, 0.95)]


def test_best_points_spare_the_picture():
    regime = runs.TUNED_REGIMES[0]
    results = [result("base"), result("dpo", 10.0, 0.9, 0.08, regime), result("dpo", 50.0, 0.7, 0.05, regime)]
    results[1]["curve"] = {"40": {**results[1]["means"], "identity": 0.8, "residual": 0.055}}
    results.append(result("mask", 10.0, 0.9, 0.08, regime))
    rows = report.best_table(results).splitlines()[2:]
    assert rows[0].startswith("| dpo | 0.800 (") and "beta 10, 40 steps; of 3)" in rows[0]
    assert rows[1].startswith("| mask | none of 1 |") and len(rows) == 2


@pytest.mark.parametrize("n_seeds", [1, 2, 5])
def test_intervals_hold_the_mean_as_often_as_they_say(n_seeds):
    """Over many experiments whose scenes, seeds and runs all vary; scenes matter alike in all runs of one."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        scenes, seeds = rng.normal(0, 0.5, 200), rng.normal(0, 0.05 if n_seeds > 1 else 0, (n_seeds, 1))
        _, low, high = interval(0.7 + scenes + seeds + rng.normal(0, 0.3, (n_seeds, 200)))
        held += low <= 0.7 <= high
    assert 0.93 <= held / 1000 <= 0.995


def test_further_runs_lie_where_they_are_expected():
    rng = np.random.default_rng(0)
    lay = [low <= rng.normal() <= high for low, high in (further_run(rng.normal(size=5)) for _ in range(2000))]
    assert 0.935 <= np.mean(lay) <= 0.965


def test_interval_by_hand():
    one = [0.0, 1.0, 1.0, 0.0]
    assert interval([one]) == pytest.approx((0.5, 0.5 - 3.182 * 0.57735 / 2, 0.5 + 3.182 * 0.57735 / 2), abs=1e-3)
    mean, low, _ = interval([[0.2] * 9, [0.4] * 9])  # scenes that are alike leave what the runs differ by
    assert (mean, low) == pytest.approx((0.3, 0.3 - 12.706 * 0.1), abs=1e-3)


def test_changes_are_in_proportion_to_the_base():
    rng = np.random.default_rng(0)
    base = rng.random(400)
    assert report.change([1.2 * base], base) == pytest.approx((0.2, 0.2, 0.2))
    run = np.clip(base + rng.normal(0.05, 0.2, 400), 0, None)
    drawn = rng.integers(400, size=(4000, 400))
    low, high = np.percentile(run[drawn].mean(1) / base[drawn].mean(1) - 1, [2.5, 97.5])
    assert report.change([run], base) == pytest.approx((run.mean() / base.mean() - 1, low, high), abs=0.004)


def test_tables_hold_what_was_run(tmp_path):
    results = [
        result("base"),
        *(result("dpo", 30.0, seed=seed, identity=0.6) for seed in (0, 1, 2)),
        *(result("focus", 30.0, seed=seed, identity=0.6) for seed in (0, 1)),
        *(result("mask", 30.0, seed=seed, identity=0.7) for seed in (1, 2)),
        result("patch", 30.0, seed=1, identity=0.9),  # one seed is no contrast
    ]
    for run in results[1:]:
        run["train"] = {"gradient_factor": 0.4}
        run["errors"] = {f"error/{i}/{p}": 0.1 for i in ("chosen", "rejected") for p in ("inside", "outside")}
    for run in results:
        run["means"] |= dict.fromkeys(("position", "shape", "colour", "pattern", "extra"), 0.9)
    table = report.main_table(results).splitlines()[2:]
    assert table[0].startswith("|  | base | 1 | ") and len(table) == 5
    assert "| on-policy | focus (beta 30, 80 steps) | 2 | 0.600 [0.600, 0.600] |" in table[-1]
    contrasts = report.contrast_table(results).splitlines()[2:]
    assert [line.split(" | ")[1:3] for line in contrasts] == [["mask", "2"], ["focus", "2"]]
    assert "| +0.100 [+0.100, +0.100] |" in contrasts[0]
    assert [line.split(" | ")[1] for line in report.contrast_table(results, "mask").splitlines()[2:]] == ["dpo"]
    further = report.further_table(results).splitlines()[2:]
    assert further[0] == "| on-policy | dpo | 3 | " + " | ".join(["[0.600, 0.600]"] * 4) + " |" and len(further) == 3
    changes = report.change_table(results).splitlines()[2:]
    assert len(changes) == 3 and "| mask | 2 | +40.0% [+40.0%, +40.0%] |" in changes[1]
    results[1]["means-3"] = {"identity": 0.4}  # of the first seed alone
    ends = report.means_table(results, report.ENDS).splitlines()[2:]
    assert ends == ["| on-policy | dpo | 0.400 |  |  |"]
    training = report.means_table(results, report.TRAINING).splitlines()[2:]
    assert training[0] == "| on-policy | dpo | 0.100 | 0.100 | 0.100 | 0.100 | 0.400 |" and len(training) == 4
    for draw in (figures.draw_frontier, figures.draw_main):
        draw(results, tmp_path / "figure.png")
        with PIL.Image.open(tmp_path / "figure.png") as figure:
            assert len(figure.convert("RGB").getcolors(2**24)) > 50  # more than axes


def test_ablations_are_told_against_the_map_as_it_is():
    results = [result("focus", 30.0, scenes=[0.5, 0.5, 1.0, 1.0]), result("focus", 30.0, scenes=[0.5] * 4)]
    results[1]["run"]["settings"] = {"leak_weight": 0.0}
    whole, without = report.ablate_table(results).splitlines()[2:]
    assert "| as it is | 0.750 |" in whole and whole.endswith("|  |")
    assert "`leak_weight: 0.0` | 0.500 |" in without and "| -0.250 [-0.709, +0.209] |" in without


def test_points_are_chosen_anew_for_each_seed(monkeypatch):
    regime, other = runs.REPEATED_REGIMES
    monkeypatch.setattr(report, "REPEATED_METHODS", ("dpo", "focus"))

    def swept(method, points, seed):
        return [
            result(method, beta, identity, residual, regime, seed=seed)
            for beta, (identity, residual) in zip(runs.BETAS, points, strict=True)
        ]

    results = [
        result("base", identity=0.5, residual=0.04),
        result("dpo", runs.BETAS[0], 0.99, 0.04, regime, sft=0.1),  # not on the other seeds
        result("dpo", runs.LOW_BETA, 0.98, 0.04, regime),
        result("dpo", runs.BETAS[0], 0.97, 0.04, other),
        *swept("dpo", [(0.6, 0.044), (0.7, 0.049), (0.9, 0.059)], seed=0),
        *swept("focus", [(0.7, 0.044), (0.8, 0.061), (0.9, 0.2)], seed=0),
        *swept("dpo", [(0.8, 0.044), (0.6, 0.049), (0.6, 0.059)], seed=1),
        *swept("focus", [(0.8, 0.046), (0.7, 0.049), (0.9, 0.059)], seed=1),
        *swept("dpo", [(0.96, 0.04)] * 3, seed=2),  # whose runs are not all there
        *swept("focus", [(0.1, 0.04)] * 3, seed=2)[:2],
    ]
    dpo, focus, against = [line[2:].split(" | ") for line in report.repeated_table(results).splitlines()[2:]]
    assert [cell.split()[0] for cell in dpo] == [regime, "dpo", "2", "0.700", "0.750", "0.850"]
    assert [cell.split()[0] for cell in focus] == [regime, "focus", "2", "0.600", "0.750", "0.800"]
    assert [cell.split()[0] for cell in against] == [regime, "focus,", "2", "-0.100", "+0.000", "-0.050"]
    assert against[3] == f"-0.100 [{-0.1 - 12.706 * 0.2:+.3f}, {-0.1 + 12.706 * 0.2:+.3f}]"


def test_runs_at_points_that_were_taken_back_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    lines = [result("base", regime="minimal"), *(result("dpo", beta, seed=1) for beta in (10.0, 30.0))]
    (tmp_path / "main.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    point = {"beta": 30.0, "sft": 0.0, "steps": 80}
    (tmp_path / "operating_points.json").write_text(json.dumps({"dpo": {"on-policy": point}}))
    assert [found["run"]["beta"] for found in report.at_chosen_points("main")] == [0.0, 30.0]
    assert report.at_chosen_points("ablate") == []


def test_pairs_of_on_policy_are_the_same_for_every_seed(monkeypatch, tmp_path):
    monkeypatch.setattr(pairs, "CACHE", tmp_path)
    asked = []

    def drawn(n_pairs, split, seed):
        asked.append(seed)
        rows = pairs.make_pairs("minimal", 2, split, seed, False)
        return rows, rows

    monkeypatch.setattr(pairs, "on_policy_pairs", drawn)
    pairs.pairs_of.cache_clear()
    assert pairs.pairs_of("on-policy", 3, False)[0] == pairs.pairs_of("on-policy", 0, False)[0]
    pairs.pairs_of("on-policy", 1, True)
    pairs.pairs_of.cache_clear()
    assert asked == [0]


def test_on_policy_pairs_are_samples_of_the_base_that_differ():
    drawn, relevant = pairs.on_policy_pairs(2, "train", 0, chunk=6)
    validate_dataset(drawn)
    for row, other in zip(drawn, relevant, strict=True):
        assert all(np.array_equal(row[name], other[name]) for name in ("chosen", "rejected"))
        assert 1 <= sum(mask is not None for mask in other["chosen_masks"]) <= 2
        (asked,) = [
            scene
            for i in range(60)
            if prompt_of(scene := draw_scene(generator("train", 11, 0, i), "train", 2)) == row["prompt"]
        ][:1]
        chosen, rejected = (quality(np.asarray(row[name]), asked) for name in ("chosen", "rejected"))
        assert chosen >= rejected + 0.2


def test_the_account_has_the_tables_of_the_stored_runs():
    page = report.ACCOUNT.read_text()
    assert page.count("<!-- end -->") >= 6
    assert report.filled(page) == page, "run `make sprites-report`"
    before = "said\n\n<!-- ablate: all runs -->\n\n| old |\n\n<!-- end -->\n\nand said"
    after = report.filled(before)
    assert "| old |" not in after and "| mixed | as it is | " in after
    assert after.startswith("said\n\n<!-- ") and after.endswith(" -->\n\nand said") and report.filled(after) == after
