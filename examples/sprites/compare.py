# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Compares preference methods on the sprites: from one base, on the same pairs, with the same noise.

    python -m examples.sprites.compare tune            # beta, and the SFT term, on validation scenes
    python -m examples.sprites.compare main            # the chosen points, five seeds, test scenes
    python -m examples.sprites.compare repeat          # beta on further seeds, where `dpo` is ahead
    python -m examples.sprites.compare ablate          # parts, gate, matching, block, normalization of the map
    python -m examples.sprites.compare main --seeds 0 --methods dpo,focus --regimes nuisance-strong --again

Every run is one line of `examples/sprites/results/STAGE.jsonl`, written when it ends: a run that is there is not run again,
so that all may be stopped and started at will.
"""

import argparse
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

import datasets
import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from trl_focus import FocusDPOConfig, FocusDPOTrainer
from trl_focus.noise import denoising_error

from .intervals import further_run
from .pairs import one_process, pairs_of, seed_of_pairs
from .pipeline import DEVICE, ENCODE_PROMPT_KWARGS, load_base
from .runs import MAIN_REGIMES, METHODS, PER_SCENE, Run, planned, store, stored
from .sampling import drawn_scores, means
from .world import SCENE


BATCH_SIZE, LEARNING_RATE = 16, 1e-3
CURVE = (20, 40, 80)  # steps at which scenes are drawn, any of which may become a method's operating point


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("stage", choices=["tune", "main", "repeat", "ablate"])
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
            store(args.stage, result)
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
    if stage in ("tune", "repeat"):
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
    A line for each measure of a run that was run again: where the stored ones of all seeds let expect it, and whether it is
    there. One seed says nothing of how runs differ.
    """
    for name in PER_SCENE:
        means, now = [np.mean(before["scenes"][name]) for before in stated], result["means"][name]
        if len(means) == 1:
            yield f"  {name}: stored {means[0]:.3f}, now {now:.3f}: one seed is stored"
            continue
        low, high = further_run(means)
        place = "inside" if low <= now <= high else "OUTSIDE"
        yield f"  {name}: stated [{low:.3f}, {high:.3f}], now {now:.3f}: {place}"


if __name__ == "__main__":
    main()
