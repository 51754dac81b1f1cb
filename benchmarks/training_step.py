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
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
import yaml

from examples.photographs.scenes import make_pairs
from tests.fixtures.pipelines import TINY
from trl_focus import DiffusionDPOConfig, DiffusionDPOTrainer, FocusDPOConfig, FocusDPOTrainer

from .clock import Clock, now
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
    "precompute_ref_errors=1,torch_compile=true",
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
    focus = any(name.startswith("focus") for name in settings)
    trainer_class, config_class = (
        (FocusDPOTrainer, FocusDPOConfig) if focus else (DiffusionDPOTrainer, DiffusionDPOConfig)
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


@dataclass
class Way:
    """
    What a way to train took.

    Attributes:
        clock ([`Clock`]):
            Over its trainer.
        flops (`int`):
            The model's operations of a step.
        seconds (`list[float]`):
            Of each step.
        megabytes (`float`):
            Peak memory of steps.
    """

    clock: Clock
    flops: int = 0
    seconds: list[float] = field(default_factory=list)
    megabytes: float = 0.0


@dataclass
class Measured:
    """
    What a family of a size took.

    Attributes:
        ways (`dict[str, Way]`):
            By option; the first is the default.
        weights (`int`):
            Of the denoiser, without LoRA.
        predicted, counted (`int`):
            Operations of a default step, by the cost model and by torch's counter.
    """

    ways: dict[str, Way]
    weights: int
    predicted: int
    counted: int


def peak(family: str, size: Size, settings: dict) -> float:
    """What three steps take at most, in MB: all of it on a GPU, else what comes on top of the loaded process."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(make(family, size, folder, 4, **settings))
        clock.next_batch()  # computes the reference's errors, where they are computed before training
        memory = Peak()
        for _ in range(3):
            clock.step()
    return memory.read() - (0 if torch.cuda.is_available() else memory.start)


def measure(family: str, size: Size, options: list[str], rounds: int, now: Callable[[], float] = now) -> Measured:
    """Steps of each option in turn."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = {option: make(family, size, folder, rounds + 2, **settings_of(option)) for option in options}
        ways = {option: Way(Clock(trainer, now)) for option, trainer in trainers.items()}
        for way in ways.values():
            way.clock.step()  # loads what is loaded on first use
        default = ways[options[0]].clock
        policy, batch = default.trainer.accelerator.unwrap_model(default.trainer.model), default.next_batch()
        trace = trace_step(default.trainer, batch)
        predicted = (
            forward_flops(trace)
            + forward_flops(trace, lora=False)
            + backward_flops(trace, scores_again=torch.cuda.is_available())
            + default.trainer.args.gradient_checkpointing * recomputed_flops(trace)
        )
        counted = counted_flops(default.trainer, batch)
        for option, way in ways.items():
            way.clock.clear()
            way.flops = model_flops(trace, reference=not trainers[option].args.precompute_ref_errors)
        for _ in range(rounds):
            for way in ways.values():
                way.seconds.append(way.clock.step())
        weights = sum(weight.numel() for weight in policy.parameters() if not weight.requires_grad)
    return Measured(ways, weights, predicted, counted)


def row(*cells):
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "small"])
    parser.add_argument(
        "--options", nargs="*", help="settings to compare; with none named, those that matter for speed"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wall", action="store_true", help="read the clock on the wall, waiting included")
    given = parser.parse_args()
    options = [DEFAULT, *(OPTIONS if given.options == [] else given.options or [])]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU thread(s)"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    most = peak_flops()
    print(f"{device}, {platform.machine()}, peak {most / 1e9:.0f} GFLOP/s; {libraries}; {given.rounds} rounds\n")
    row(
        *("family", "size", "setting", "steps per second, against the default (quartiles)", "share of the peak"),
        *("time", "peak memory, against the default", "steps per second", "GFLOP/s", "MB"),
    )
    row(*["---"] * 10)
    checked = []
    for family in given.families:
        for size in given.sizes:
            found = measure(family, SIZES[size], options, given.rounds, time.perf_counter if given.wall else now)
            checked.append((family, size, found.weights, found.counted, found.predicted))
            first = found.ways[DEFAULT]
            for option, way in found.ways.items():
                way.megabytes = alone(peak, family, SIZES[size], settings_of(option))
                ratios = [default / taken for default, taken in zip(first.seconds, way.seconds, strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                speed = way.flops / statistics.median(way.seconds)
                row(
                    *(family, size, option, "1" if way is first else f"{middle:.2f} ({low:.2f} to {high:.2f})"),
                    f"{speed / most:.0%}",
                    ", ".join(f"{part} {share:.1%}" for part, share in way.clock.parts().items() if share >= 0.0005),
                    f"{way.megabytes / first.megabytes:.2f}",
                    f"{1 / statistics.median(way.seconds):.3g}",
                    f"{speed / 1e9:.1f}",
                    f"{way.megabytes:.0f}",
                )
    print()
    row("family", "size", "weights of the denoiser", "GFLOP of a step, by torch's counter", "cost model, against it")
    row(*["---"] * 5)
    for family, size, weights, counted, predicted in checked:
        row(family, size, f"{weights / 1e6:.1f} M", f"{counted / 1e9:.2f}", f"{predicted / counted:.4f}")


if __name__ == "__main__":
    main()
