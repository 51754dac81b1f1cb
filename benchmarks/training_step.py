# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What a step takes, by family and size: speed, the share of the device's peak, the parts of the time, and peak memory.

    python -m benchmarks.training_step [--families sdxl ...] [--sizes small ...] [--options one_forward=false ...]

Each option, one setting or several with commas between them, is a row of its own; the ways of a family and size take their steps
in turn, so that what else the machine does falls on all alike.
"""

import argparse
import platform
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any

import torch
import yaml
from diffusers.training_utils import free_memory

from examples.photographs.scenes import make_pairs
from tests.fixtures.pipelines import TINY
from trl_focus import DiffusionDPOConfig, DiffusionDPOTrainer, FocusDPOConfig, FocusDPOTrainer

from .clock import Clock, now, wall
from .cost_model.operations import backward_flops, forward_flops, model_flops, recomputed_flops
from .memory import Peak, alone
from .pipelines import FAMILIES, SIZES, Size, build, prompt_kwargs, reference_sizes
from .utilisation import counted_flops, peak_flops, trace_step


DEFAULT = "default"
OPTIONS = (
    "encode_once=false",
    "precompute_ref_errors=1",
    "one_forward=false",
    "gradient_checkpointing=true",
    "torch_compile=true",
    "focus_map=uniform",
    "focus_map=focus",
)


def settings_of(option: str) -> dict[str, Any]:
    """`"a=1,b=true"` as arguments of a configuration."""
    if option == DEFAULT:
        return {}
    return {name: yaml.safe_load(value) for name, value in (part.split("=", 1) for part in option.split(","))}


def make(family: str, size: Size, folder: str, n_pairs: int, **settings) -> DiffusionDPOTrainer:
    """A trainer before its first step."""
    pairs = make_pairs(n_pairs, size=(size.resolution,) * 2, reference_size=(size.reference,) * 2)
    if not TINY[family].references:
        pairs = pairs.remove_columns([name for name in pairs.column_names if name.startswith("reference")])
    plain = settings.keys() <= {field.name for field in fields(DiffusionDPOConfig)}
    trainer_class, config_class = (
        (DiffusionDPOTrainer, DiffusionDPOConfig) if plain else (FocusDPOTrainer, FocusDPOConfig)
    )
    args = config_class(
        output_dir=folder,
        resolution=size.resolution,
        reference_resolution=size.reference if TINY[family].references else None,
        encode_prompt_kwargs=prompt_kwargs(family, size),
        per_device_train_batch_size=1,
        report_to="none",
        **{"gradient_checkpointing": size.checkpointing, **settings},
    )
    with reference_sizes(size):
        trainer = trainer_class(build(family, size), args=args, train_dataset=pairs)
    # What `train` does before its first step
    trainer.create_optimizer()
    if args.gradient_checkpointing:
        trainer.model.activation_checkpointing_enable()
    trainer.model.train()
    return trainer


@dataclass(frozen=True)
class Way:
    """
    What steps took, trained one way.

    Attributes:
        seconds (`list[float]`):
            Of each step.
        parts (`dict[str, float]`):
            Shares of the time.
        flops (`int`):
            The model's operations of a step.
    """

    seconds: list[float]
    parts: dict[str, float]
    flops: int


@dataclass(frozen=True)
class Measured:
    """
    What a family of a size took.

    Attributes:
        ways (`dict[str, Way]`):
            By option; the first is the default.
        peaks (`list[float]`):
            What the device reaches in each round, in operations per second.
        weights (`int`):
            Of the denoiser, without LoRA.
        predicted, counted (`int`):
            Operations of a default step, by the cost model and by torch's counter.
    """

    ways: dict[str, Way]
    peaks: list[float]
    weights: int
    predicted: int
    counted: int


def peak(family: str, size: Size, settings: dict) -> float:
    """What two steps take at most, in MB: all of it on a GPU, else what comes on top of the loaded process."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(make(family, size, folder, 2, **settings))
        clock.next_batch()  # computes the reference's errors, where they are computed before training
        memory = Peak()
        for _ in range(2):
            clock.step()
    return memory.read() - (0 if torch.cuda.is_available() else memory.start)


def measure(family: str, size: Size, options: list[str], rounds: int, now: Callable[[], float] = now) -> Measured:
    """Takes steps of each option in turn."""
    seconds, peaks = defaultdict(list), []
    with tempfile.TemporaryDirectory() as folder:
        clocks = {
            option: Clock(make(family, size, folder, rounds + 2, **settings_of(option)), now) for option in options
        }
        for clock in clocks.values():
            clock.step()  # loads what is loaded on first use
        default = clocks[options[0]].trainer
        batch = clocks[options[0]].next_batch()
        trace = trace_step(default, batch)
        predicted = (
            forward_flops(trace)
            + forward_flops(trace, lora=False)
            + backward_flops(trace, scores_again=torch.cuda.is_available())
            + default.args.gradient_checkpointing * recomputed_flops(trace)
        )
        counted = counted_flops(default, batch)
        for clock in clocks.values():
            clock.clear()
        for _ in range(rounds):
            peaks.append(peak_flops(now))  # in turn with the steps, as it falls with them when the machine is busy
            for option, clock in clocks.items():
                seconds[option].append(clock.step())
    ways = {
        option: Way(
            seconds[option],
            clock.parts(),
            model_flops(trace, reference=not clock.trainer.args.precompute_ref_errors),
        )
        for option, clock in clocks.items()
    }
    weights = sum(weight.numel() for weight in default.model.parameters() if not weight.requires_grad)
    return Measured(ways, peaks, weights, predicted, counted)


def row(*cells):
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_ways(family: str, size: str, found: Measured):
    """A row for each way: ratios first."""
    default, used = found.ways[DEFAULT], {}
    for option, way in found.ways.items():
        used[option] = alone(peak, family, SIZES[size], settings_of(option))
        ratios = [plain / taken for plain, taken in zip(default.seconds, way.seconds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        shares = [way.flops / taken / most for taken, most in zip(way.seconds, found.peaks, strict=True)]
        taken = statistics.median(way.seconds)
        row(
            *(family, size, option, "1" if way is default else f"{middle:.2f} ({low:.2f} to {high:.2f})"),
            f"{statistics.median(shares):.0%}",
            ", ".join(f"{part} {share:.1%}" for part, share in way.parts.items() if share >= 0.0005),
            *(f"{used[option] / used[DEFAULT]:.2f}", f"{1 / taken:.3g}"),
            *(f"{way.flops / taken / 1e9:.1f}", f"{used[option]:.0f}"),
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "small"])
    parser.add_argument("--options", nargs="*", help="settings to compare; with none named, those that matter")
    parser.add_argument("--rounds", type=int, default=5, choices=range(2, 1000), metavar="N", help="at least 2")
    parser.add_argument("--wall", action="store_true", help="read the clock on the wall, waiting included")
    given = parser.parse_args()
    options = [DEFAULT, *(OPTIONS if given.options == [] else given.options or [])]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU thread(s)"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    print(f"{device}, {platform.machine()}, {libraries}; {given.rounds} rounds\n")
    row(
        *("family", "size", "setting", "steps per second, against the default (quartiles)", "share of the peak"),
        *("time", "peak memory, against the default", "steps per second", "GFLOP/s", "MB"),
    )
    row(*["---"] * 10)
    checked = []
    for family in given.families:
        for size in given.sizes:
            found = measure(family, SIZES[size], options, given.rounds, wall if given.wall else now)
            free_memory()  # of a GPU, for the processes that measure memory
            print_ways(family, size, found)
            checked.append((family, size, found))
    print()
    row(
        *("family", "size", "weights", "GFLOP of a step, by torch's counter", "cost model, against it"),
        "peak of the device, in GFLOP/s",
    )
    row(*["---"] * 6)
    for family, size, found in checked:
        row(
            *(family, size, f"{found.weights / 1e6:.1f} M", f"{found.counted / 1e9:.2f}"),
            *(f"{found.predicted / found.counted:.4f}", f"{statistics.median(found.peaks) / 1e9:.0f}"),
        )


if __name__ == "__main__":
    main()
