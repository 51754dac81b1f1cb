# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The runs of the comparison: what makes one, which are planned, and which are stored."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .data import RENDERED


RESULTS = Path(__file__).parent / "results"
PER_SCENE = ("identity", "leakage", "background_error", "residual")  # kept for each scene, for intervals
STEPS = 80
BETAS = (300.0, 50.0, 2000.0)  # as they are run
LOW_BETA = 10.0  # tried in two regimes, in most of which it wrecks the model
SFT_WEIGHT = 0.1

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
MAIN_METHODS = ("dpo", "focus", "focus-held", "mask")  # compared over several seeds
OTHER_METHODS = tuple(method for method in METHODS if method not in MAIN_METHODS)
N_SEEDS = 5
# The last serves the rest, which are in it
TUNED_REGIMES = ("nuisance-strong", "nuisance-weak", "confounded-chosen", "on-policy", "mixed")
SFT_REGIMES = ("nuisance-strong", "confounded-chosen", "on-policy")  # a kind of pairs each
LOW_REGIMES = ("nuisance-strong", "on-policy")
MAIN_REGIMES = (*TUNED_REGIMES, *(name for name in RENDERED if name not in TUNED_REGIMES))  # as they are run
# Where `dpo` is ahead of `focus` at the chosen points
REPEATED_REGIMES, REPEATED_SEEDS = ("nuisance-weak", "on-policy"), (1, 2, 3)
REPEATED_METHODS = ("dpo", "focus", "focus-held")
ABLATED, ABLATED_REGIME = "focus", "mixed"
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


def stored(stage: str) -> dict[str, dict]:
    """Results of a stage by the key of their run."""
    path = RESULTS / f"{stage}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {Run(**result["run"]).key: result for result in map(json.loads, lines)}


def store(stage: str, result: dict):
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{stage}.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")


def operating_points() -> dict[str, dict[str, dict]]:
    """Beta, SFT weight and steps of each method by regime, as chosen on validation scenes: see `report.choose`."""
    path = RESULTS / "operating_points.json"
    if not path.exists():
        raise SystemExit(f"There are no operating points in {path} yet: run `tune`, then `report --choose`.")
    return json.loads(path.read_text())


def planned(stage: str) -> list[Run]:
    """All runs of a stage, main contrasts first."""
    if stage == "tune":
        return [
            Run(TUNED_REGIMES[0], "base", 0.0),
            *_swept(BETAS, TUNED_REGIMES),
            *(Run(regime, "sft", BETAS[0]) for regime in TUNED_REGIMES),  # SFT alone does not know beta
            *_swept(BETAS, SFT_REGIMES, SFT_WEIGHT),
            *_swept([LOW_BETA], LOW_REGIMES),
        ]
    if stage == "repeat":
        return [
            Run(regime, method, beta, seed=seed)
            for regime in REPEATED_REGIMES
            for seed in REPEATED_SEEDS
            for beta in BETAS
            for method in REPEATED_METHODS
        ]
    points = operating_points()
    if stage == "main":
        runs = [Run("minimal", "base", 0.0), *_chosen(points, MAIN_REGIMES, MAIN_METHODS)]
        for seed in range(1, N_SEEDS):
            runs += _chosen(points, TUNED_REGIMES, MAIN_METHODS, seed=seed)
        return runs + _chosen(points, TUNED_REGIMES, OTHER_METHODS)
    return [run for each in ABLATIONS for run in _chosen(points, [ABLATED_REGIME], [ABLATED], settings=each)]


def _swept(betas: Sequence[float], regimes: Sequence[str], sft: float = 0.0) -> list[Run]:
    methods = [method for method in (*MAIN_METHODS, *OTHER_METHODS) if method != "sft"]
    return [Run(regime, method, beta, sft) for beta in betas for method in methods for regime in regimes]


def _chosen(points: dict, regimes: Sequence[str], methods: Sequence[str], **settings) -> list[Run]:
    """Runs at the operating points. Where a method has none, the one in `mixed` serves; if there is none either, no run."""
    runs = []
    for method in methods:
        at = points.get(method, {})
        for regime in regimes:
            if point := at.get(regime, at.get("mixed")):
                runs.append(Run(regime, method, **point, **settings))
    return runs
