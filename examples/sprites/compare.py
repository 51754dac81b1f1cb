# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Compares preference methods on the sprites: from one base, on the same pairs, with the same noise.

    python -m examples.sprites.compare tune            # beta, and the SFT term, on validation scenes
    python -m examples.sprites.compare main            # the chosen points, five seeds, test scenes
    python -m examples.sprites.compare ablate          # parts, gate, matching, block, normalization of the map
    python -m examples.sprites.compare main --seeds 0 --methods dpo,focus --regimes nuisance-strong --again

Every run is one line of `examples/sprites/results/STAGE.jsonl`, written when it ends: a run that is there is not run again,
so that all may be stopped and started at will.
"""

import argparse
import json
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path

import datasets
import numpy as np
import torch
from filelock import FileLock
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from trl_focus import FocusDPOConfig, FocusDPOTrainer
from trl_focus.noise import denoising_error

from .data import RENDERED, best_and_worst, dataset_of, make_pairs, sampled_row
from .intervals import interval
from .pipeline import ENCODE_PROMPT_KWARGS, load_base
from .sampling import draw
from .scorer import score_all
from .world import SCENE, draw_scene, generator, references_of


RESULTS = Path(__file__).parent / "results"
CACHE = Path("outputs/sprites/pairs")
N_PAIRS = 640
N_ON_POLICY = 512  # they have to be drawn
N_SAMPLES = 4  # of a prompt, best and worst of which make an on-policy pair

STEPS, BATCH_SIZE, LEARNING_RATE = 80, 16, 1e-3
CURVE = (20, 40, 80)  # steps at which scenes are drawn, any of which may become a method's operating point
BETAS = (300.0, 50.0, 2000.0, 10.0)  # as they are run
SFT_WEIGHT = 0.1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Settings of `FocusDPOConfig`, and weights of the losses. All methods share the trainer, so that nothing else differs. Stored
# runs are known by a method's name: whoever changes what one does takes its runs out of `results`.
ANCHOR = 0.04
METHODS: dict[str, dict] = {
    "sft": {"focus_map": "uniform", "losses": {"sft": 1.0}},
    "dpo": {"focus_map": "uniform"},
    "mask": {"focus_map": "mask"},
    "patch": {"focus_map": "patch"},
    "focus-paper": {"focus_map": "focus", "focus_matching": "top_k", "leak_weight": 0.0},
    "focus": {"focus_map": "focus"},
    "focus-shown": {"focus_map": "focus", "subject_gate": "shown"},
    "focus-held": {
        "focus_map": "focus",
        "subject_gate": "shown",
        "losses": {"sigmoid": 1.0, "anchor": ANCHOR},
    },
    "oracle": {"focus_map": "mask"},  # with masks of the subjects in which the pair differs as the label says
}
MAIN_METHODS = ("dpo", "focus", "focus-held", "mask", "focus-shown", "oracle")
AS_RUN = (MAIN_METHODS, tuple(method for method in METHODS if method not in MAIN_METHODS))  # in this order
PER_SCENE = ("identity", "leakage", "background_error", "residual")  # kept for each scene, for intervals
# The last serves the rest, which are in it
TUNED_REGIMES = ("nuisance-strong", "nuisance-weak", "confounded-chosen", "on-policy", "mixed")
MAIN_REGIMES = (*TUNED_REGIMES, *(name for name in RENDERED if name not in TUNED_REGIMES))  # as they are run
ABLATED = "focus"
ABLATIONS: tuple[dict, ...] = (
    {},
    {"subject_gate": "shown"},
    {"structure_weight": 0.0, "leak_weight": 0.0, "detail_weight": 0.0},
    {"structure_weight": 0.0},
    {"leak_weight": 0.0},
    {"detail_weight": 0.0},
    {"background_weight": 0.0},
    {"background_weight": 0.1},
    {"background_weight": 0.3},
    {"loss_type": ["sigmoid", "anchor"], "loss_weights": [1.0, ANCHOR]},
    {"subject_gate": "shown", "loss_type": ["sigmoid", "anchor"], "loss_weights": [1.0, ANCHOR]},
    {"subject_gate": "shown", "loss_type": ["sigmoid", "anchor"], "loss_weights": [1.0, 4 * ANCHOR]},
    {"focus_normalization": "mean"},
    {"focus_normalization": "subject"},
    {"focus_matching": "top_k"},
    {"detail_gate": "alignment"},
    {"focus_blocks": ["transformer_blocks.1"]},
    {"focus_blocks": ["single_transformer_blocks.3"]},
)


@dataclass(frozen=True)
class Run:
    """
    What makes a run. Two runs that differ in `method` or `beta` alone see the same pairs, noise and noise levels, if both are on
    the CPU or both on a GPU.

    Attributes:
        regime, method (`str`):
            Of `REGIMES` and `METHODS`.
        beta (`float`):
            Of the DPO loss.
        sft (`float`):
            Weight of the SFT term beside it.
        steps (`int`):
            Steps of training.
        seed (`int`):
            Seed of the pairs, of the LoRA and of the order of training.
        settings (`dict`):
            Further settings of `FocusDPOConfig`.
    """

    regime: str
    method: str
    beta: float
    sft: float = 0.0
    steps: int = STEPS
    seed: int = 0
    settings: dict = field(default_factory=dict)

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


# ---- Pairs, encoded once ----


def folder_of(regime: str, seed: int, relevant_only: bool, split: str, n_pairs: int) -> Path:
    return CACHE / f"{regime}-{split}-{n_pairs}-{seed}{'-relevant' if relevant_only else ''}"


def seed_of_pairs(regime: str, seed: int) -> int:
    return 0 if regime == "on-policy" else seed


@lru_cache(maxsize=16)
def pairs_of(regime: str, seed: int, relevant_only: bool, split: str = "train", n_pairs: int = N_PAIRS):
    """
    The pairs of a regime, kept on disk. `mixed` has all the others in equal shares. Those of `on-policy` are the same for
    every seed: they are samples, and drawing them takes longer than training on them.
    """
    seed = seed_of_pairs(regime, seed)
    folder = folder_of(regime, seed, relevant_only, split, n_pairs)
    with one_process(f"{regime}-{split}-{n_pairs}-{seed}"):
        if folder.exists():
            return datasets.load_from_disk(folder)
        if regime == "mixed":
            parts = [*RENDERED, "on-policy"]
            found = [pairs_of(part, seed, relevant_only, split, n_pairs) for part in parts]
            rows = datasets.concatenate_datasets([part.select(range(n_pairs // len(parts))) for part in found])
        elif regime == "on-policy":
            both = on_policy_pairs(min(n_pairs, N_ON_POLICY), split, seed)
            keep(both[not relevant_only], folder_of(regime, seed, not relevant_only, split, n_pairs))
            rows = both[relevant_only]
        else:
            rows = make_pairs(regime, n_pairs, split, seed, relevant_only)
        keep(rows, folder)
    return rows


def keep(rows: datasets.Dataset, folder: Path):
    """Writes rows so that the folder is there once it is whole."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        rows.save_to_disk(Path(made) / "rows")
        if not folder.exists():  # those of `on-policy` come in twos
            (Path(made) / "rows").rename(folder)


def one_process(work: str) -> FileLock:
    """Within it no other process does the same work, which then finds what this one made."""
    CACHE.mkdir(parents=True, exist_ok=True)
    return FileLock(CACHE / f"{work}.lock")


def on_policy_pairs(n_pairs: int, split: str, seed: int, chunk: int = 64) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    Best against worst of `N_SAMPLES` samples of the base; prompts whose samples hardly differ are left out. Once with
    masks of all subjects, once with those of the relevant ones alone.
    """
    base, both, asked = load_base().to(DEVICE), ([], []), 0
    while len(both[0]) < n_pairs:
        rngs = [generator(split, 11, seed, i) for i in range(asked, asked + chunk)]
        asked += chunk
        scenes = [draw_scene(rng, split, 2) for rng in rngs]
        references = [references_of(scene.subjects, rng) for scene, rng in zip(scenes, rngs, strict=True)]
        samples = [
            draw(base, scenes, references, [int(rng.integers(2**31)) for rng in rngs]) for _ in range(N_SAMPLES)
        ]
        for i, (scene, rng) in enumerate(zip(scenes, rngs, strict=True)):
            if shown := best_and_worst(scene, [images[i] for images in samples]):
                for relevant_only, rows in enumerate(both):
                    rows.append(sampled_row(scene, shown, bool(relevant_only), deepcopy(rng)))
    return tuple(dataset_of(rows[:n_pairs]) for rows in both)


# ---- Measures ----


@cache
def scenes_of(split: str, n_scenes: int, n_subjects: int, unseen: bool = False, first: int = 0):
    """Scenes to draw, from number `first` on: what is asked for, references, and seeds of the noise."""
    rngs = [generator(split, 12, n_subjects, int(unseen), i) for i in range(first, first + n_scenes)]
    scenes = [draw_scene(rng, split, n_subjects, unseen) for rng in rngs]
    references = [references_of(scene.subjects, rng) for scene, rng in zip(scenes, rngs, strict=True)]
    return scenes, references, [int(rng.integers(2**31)) for rng in rngs]


def drawn_scores(
    pipeline, split: str, n_scenes: int, n_subjects: int = 2, unseen: bool = False, first: int = 0
) -> dict[str, list]:
    """Scores of each scene, by name."""
    scenes, references, seeds = scenes_of(split, n_scenes, n_subjects, unseen, first)
    images = draw(pipeline, scenes, references, seeds, batch_size=64 if DEVICE == "cpu" else 512)
    scores = score_all(images, scenes)
    return {name: np.round(values, 4).tolist() for name, values in scores.items()}


def means(scores: dict[str, list]) -> dict[str, float]:
    return {name: round(float(np.mean(values)), 4) for name, values in scores.items()}


@torch.no_grad()
def error_changes(trainer: FocusDPOTrainer, pairs: datasets.Dataset) -> dict[str, float]:
    """Policy's error minus the base's on held-out pairs, chosen and rejected, inside and outside the subjects."""
    collected: dict[str, list[float]] = {}
    for batch in trainer.get_eval_dataloader(pairs):
        x_BCHW, prompt, references = trainer._encode(batch)
        noised = trainer._noise(x_BCHW, batch["seed"])
        prediction_BCHW = trainer._predict(trainer.model, noised, prompt, references)
        change_BHW = denoising_error(prediction_BCHW, noised.target_BCHW) - trainer.reference_error(batch)
        for name, part_BHW in zip(("chosen", "rejected"), change_BHW.chunk(2), strict=True):
            inside_BHW = batch[f"{name}_masks"].amax(dim=1)
            for place, weight_BHW in (("inside", inside_BHW), ("outside", 1 - inside_BHW)):
                values = (part_BHW * weight_BHW).sum(dim=(1, 2)) / weight_BHW.sum(dim=(1, 2)).clamp(min=1e-6)
                collected.setdefault(f"error/{name}/{place}", []).extend(values.tolist())
    return {name: round(float(np.mean(values)), 6) for name, values in collected.items()}


# ---- Runs ----


class Curve(TrainerCallback):
    """Draws scenes while training."""

    def __init__(self, split: str, n_scenes: int):
        self.split, self.n_scenes = split, n_scenes
        self.points: dict[int, dict[str, float]] = {}
        self.seconds = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in CURVE and state.global_step < state.max_steps:
            began = time.monotonic()
            with self.trainer.sampling():
                self.points[state.global_step] = means(drawn_scores(self.trainer.pipeline, self.split, self.n_scenes))
            self.seconds += time.monotonic() - began


def config_of(run: Run, output_dir: str) -> FocusDPOConfig:
    method = dict(METHODS[run.method])
    losses = method.pop("losses", {"sigmoid": 1.0})
    if run.sft:
        losses = {**losses, "sft": run.sft}
    return FocusDPOConfig(
        output_dir=output_dir,
        resolution=SCENE,
        encode_prompt_kwargs=ENCODE_PROMPT_KWARGS,
        guidance_scale=1.0,
        beta=run.beta,
        seed=run.seed,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=10,
        max_steps=run.steps,
        logging_steps=min(20, run.steps),
        gradient_checkpointing=False,
        bf16=False,  # on every device, so that stored runs can be compared
        use_cpu=DEVICE == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **{"loss_type": [*losses], "loss_weights": [*losses.values()], **method, **run.settings},
    )


def train(run: Run, curve: Curve | None = None) -> FocusDPOTrainer:
    """Trains a LoRA on the base, as the run says."""
    relevant_only = run.method == "oracle"
    pairs = pairs_of(run.regime, run.seed, relevant_only)
    with tempfile.TemporaryDirectory() as folder:
        with one_process(f"encoding-{run.regime}-{seed_of_pairs(run.regime, run.seed)}-{relevant_only}"):
            trainer = FocusDPOTrainer(
                load_base(), args=config_of(run, folder), train_dataset=pairs, callbacks=[curve] if curve else []
            )
            trainer.get_train_dataloader()  # measures what a gate needs
        if curve:
            curve.trainer = trainer
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


def execute(run: Run, split: str, n_scenes: int, ends: Iterable[tuple[int, bool]] = (), curve: bool = True) -> dict:
    """
    Trains and measures.

    Args:
        split (`str`), n_scenes (`int`):
            Scenes to draw at the end.
        ends (`Iterable[tuple[int, bool]]`):
            Further kinds of scenes to draw at the end, a quarter as many: number of subjects, and whether they are unseen.
        curve (`bool`):
            Whether to draw the scenes along the way too.
    """
    began = time.monotonic()
    curve = Curve(split, n_scenes) if curve else None
    if run.method == "base":
        pipeline, trainer, logged = load_base().to(DEVICE), None, {}
    else:
        trainer = train(run, curve)
        pipeline = trainer.pipeline
        logged = trainer.state.log_history[-2]
    seconds = time.monotonic() - began - (curve.seconds if curve else 0)
    result = {"run": asdict(run), "seconds": round(seconds, 1), "split": split, "device": device_name()}
    if curve:
        result["curve"] = curve.points
    if trainer is not None:
        result["train"] = {
            name: round(logged[name], 5)
            for name in ("gradient_factor", "rewards/accuracies", "rewards/margins", "rewards/margins/inside")
        }
        held_out = pairs_of(run.regime, 0, False, "validation", 64)
        with one_process(f"encoding-{run.regime}-validation"):
            result["errors"] = error_changes(trainer, held_out)
    with trainer.sampling() if trainer else nullcontext():
        scores = drawn_scores(pipeline, split, n_scenes)
        result["means"] = means(scores)
        result["scenes"] = {name: scores[name] for name in PER_SCENE}
        for n_subjects, unseen in ends:
            name = f"{n_subjects}{'-unseen' if unseen else ''}"
            result[f"means-{name}"] = means(drawn_scores(pipeline, split, n_scenes // 4, n_subjects, unseen))
    return result


def device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE


def stored(stage: str) -> dict[str, dict]:
    """Results of a stage by the key of their run."""
    path = RESULTS / f"{stage}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {Run(**result["run"]).key: result for result in map(json.loads, lines)}


def operating_points() -> dict[str, dict[str, dict]]:
    """Beta, SFT weight and steps of each method by regime, as chosen on validation scenes: see `report.choose`."""
    path = RESULTS / "operating_points.json"
    if not path.exists():
        raise SystemExit(f"There are no operating points in {path} yet: run `tune`, then `report --choose`.")
    return json.loads(path.read_text())


def planned(stage: str) -> list[Run]:
    """All runs of a stage, main contrasts first."""
    if stage == "tune":
        runs = [Run(regime, "base", 0.0) for regime in TUNED_REGIMES[:1]]
        for methods in AS_RUN:
            for sft in (0.0, SFT_WEIGHT):
                runs += [
                    Run(regime, method, beta, sft)
                    for beta in BETAS
                    for method in methods
                    for regime in TUNED_REGIMES
                    if not (method == "sft" and (sft or beta != BETAS[0]))  # SFT alone does not know beta
                ]
        return runs
    points = operating_points()

    def chosen(regime: str, method: str, **settings) -> list[Run]:
        found = points.get(method, {})
        point = found.get(regime, found.get("mixed"))
        return [Run(regime, method, **point, **settings)] if point else []

    if stage == "main":
        runs = [Run("minimal", "base", 0.0)]
        for methods in AS_RUN:
            for seed in range(5 if methods is MAIN_METHODS else 1):
                for method in methods:
                    for regime in MAIN_REGIMES:
                        runs += chosen(regime, method, seed=seed)
        return runs
    return [run for regime in TUNED_REGIMES for each in ABLATIONS for run in chosen(regime, ABLATED, settings=each)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("stage", choices=["tune", "main", "ablate"])
    for name in ("regimes", "methods", "betas", "sft", "seeds"):
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), help="only these, separated by commas")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many")
    parser.add_argument(
        "--processes", type=int, default=1, help="runs at a time, each on one thread; they share a GPU"
    )
    parser.add_argument("--again", action="store_true", help="run what is stored too, and store nothing")
    args = parser.parse_args()
    done, deadline = stored(args.stage), time.time() + 60 * args.minutes
    cells = [
        run
        for run in planned(args.stage)
        if (not args.regimes or any(run.regime.startswith(name) for name in args.regimes))
        and (not args.methods or run.method in args.methods)
        and (not args.betas or f"{run.beta:g}" in args.betas)
        and (not args.sft or f"{run.sft:g}" in args.sft)
        and (not args.seeds or str(run.seed) in args.seeds)
    ]
    if not cells:
        raise SystemExit(
            f"No run of `{args.stage}` is of these. Regimes: {', '.join(MAIN_REGIMES)}; methods: base, {', '.join(METHODS)}. "
            "Those of `main` and `ablate` need an operating point: `tune` the method there, or in `mixed`."
        )
    cells, left = [run for run in cells if args.again or run.key not in done], 0
    for run, result in each_result(partial(measure, args.stage, args.again, deadline), cells, args.processes):
        if result is None:
            left += 1
            continue
        shown = {name: result["means"][name] for name in PER_SCENE}
        print(run.key, result["seconds"], "s", shown, flush=True)
        if args.again:
            stated = [other for other in done.values() if Run(**{**other["run"], "seed": run.seed}) == run]
            print("\n".join(against_stored(result, stated) if stated else ["  not stored"]), flush=True)
        else:
            RESULTS.mkdir(exist_ok=True)
            with (RESULTS / f"{args.stage}.jsonl").open("a") as file:
                file.write(json.dumps(result) + "\n")
    if left:
        print(f"out of time, with {left} runs left; start again to go on")


def measure(stage: str, again: bool, deadline: float, run: Run) -> tuple[Run, dict | None]:
    """A run of a stage, and what came of it; `None` if its time was over before it began."""
    if time.time() > deadline:
        return run, None
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if stage == "main":
        ends = ((3, False), (4, False), (2, True)) if run.seed == 0 and not again else ()
        return run, execute(run, "test", 512, ends, curve=False)
    if stage == "tune":
        return run, execute(run, "validation", 128)
    return run, execute(run, "validation", 512, curve=False)


def _begin_process():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it; the pool would take it for a failed run, and go on
    torch.set_num_threads(1)


def each_result(measure: Callable, cells: Sequence[Run], processes: int) -> Iterator:
    """What `measure` returns of each run, as they end."""
    if processes == 1:
        yield from map(measure, cells)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin_process)
    failed = []
    try:
        for future in as_completed([pool.submit(measure, run) for run in cells]):
            if error := future.exception():
                failed.append(error)  # the others are worth keeping
            else:
                yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(cells)} runs failed") from failed[0]


def against_stored(result: dict, stated: Sequence[dict]) -> Iterator[str]:
    """
    A line for each measure of a run that was run again: what the stored ones of all seeds state, and whether it is inside. The
    interval of one seed says nothing of how runs differ.
    """
    for name in PER_SCENE:
        mean, low, high = interval([before["scenes"][name] for before in stated])
        place = "inside" if low <= result["means"][name] <= high else "OUTSIDE"
        if len(stated) == 1:
            place = "one seed is stored"
        yield f"  {name}: stored {mean:.3f} [{low:.3f}, {high:.3f}], now {result['means'][name]:.3f}: {place}"


if __name__ == "__main__":
    main()
