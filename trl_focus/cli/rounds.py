# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from argparse import RawDescriptionHelpFormatter
from typing import Any


DESCRIPTION = """\
Train on-policy, in rounds: draw images with the model as it is, pair them, train on all pairs so far, and again.

    output_dir: outputs/rounds
    rounds: 3
    model: black-forest-labs/FLUX.2-klein-base-4B
    method: focus
    pairs: {mode: best-worst, dataset: user/prompts, n_samples: 4}
    train: {resolution: 512, max_steps: 200, focus_prior: similarity}

`pairs` takes what `trl-focus pairs` takes, `train` what `trl-focus train` takes. Each round trains a LoRA anew, from the
base, on the pairs of all rounds; the first draws with the base, each other with the LoRA of the one before. What is done is
not done again."""

FIELDS = ("output_dir", "rounds", "model", "method", "pairs", "train")
GIVEN = {
    "pairs": ("model", "lora", "output_dir", "seed"),
    "train": ("model_name_or_path", "dataset_name", "datasets", "output_dir"),
}
APART = 1_000_000  # between the seeds of two rounds


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "rounds",
        help="draw, pair and train again and again, by one file",
        description=DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file")
    return parser


def run(args) -> int:
    import subprocess
    import sys
    from pathlib import Path

    import yaml

    from ..errors import refusals
    from ..evaluation.files import keep_settings

    config = _read(args.config)
    output_dir = Path(config["output_dir"])
    with refusals():
        # Rounds that are done are not done again, so these have to be theirs; more may follow
        keep_settings(output_dir, {name: value for name, value in config.items() if name != "rounds"})
    sampled, lora = [], None
    for number in range(1, config["rounds"] + 1):
        folder = output_dir / f"round-{number}"
        pairs = {**config["pairs"], "model": config["model"], "lora": lora, "output_dir": folder / "sampled"}
        pairs["seed"] = (number - 1) * APART
        sampled.append(str(folder / "sampled" / "pairs"))
        lora = folder / "lora"
        train = _training(config, sampled, str(lora))
        commands = [["pairs", pairs.pop("mode"), pairs.pop("dataset"), *words_of(pairs)]]
        if not (lora / "pytorch_lora_weights.safetensors").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "train.yaml").write_text(yaml.safe_dump(train, sort_keys=False), encoding="utf-8")
            commands.append(["train", config["method"], "--config", str(folder / "train.yaml")])
        for command in commands:
            sys.stdout.write(f"round {number}: trl-focus {' '.join(command)}\n")
            sys.stdout.flush()
            # In a process of its own, so that none holds the memory of another
            if code := subprocess.run([sys.executable, "-m", "trl_focus", *command]).returncode:
                return code
    return 0


def _training(config: dict[str, Any], datasets: list[str], output_dir: str) -> dict[str, Any]:
    """The settings of a round's training."""
    given = {"model_name_or_path": config["model"], "datasets": datasets, "output_dir": output_dir}
    return {**config["train"], **given}


def words_of(options: dict[str, Any]) -> list[str]:
    """Options of a file as words of a command line: a mapping as JSON, a list as several words, true as a flag alone."""
    import json

    words = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if isinstance(value, dict):
            words.append(json.dumps(value))
        elif isinstance(value, list):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    return words


def _read(path: str) -> dict[str, Any]:
    from importlib import import_module
    from pathlib import Path

    import yaml

    from ..errors import InputError, refusals
    from ..scripts.arguments import check_file
    from .train import METHODS

    with refusals():
        try:
            config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is no mapping of names: see `trl-focus rounds --help`")
    if unknown := [str(name) for name in config if name not in FIELDS]:
        raise InputError(f"{path} has {', '.join(unknown)}; it may have {', '.join(FIELDS)}")
    if missing := [name for name in FIELDS if name not in config and name != "method"]:
        raise InputError(f"{path} lacks {', '.join(missing)}: see `trl-focus rounds --help`")
    if type(config["rounds"]) is not int or config["rounds"] < 1:
        raise InputError(f"`rounds` is {config['rounds']!r}: give a number above 0")
    config.setdefault("method", "focus")
    if config["method"] not in METHODS:
        raise InputError(f"`method` is {config['method']!r}; there are {', '.join(METHODS)}")
    for name, given in GIVEN.items():
        if not isinstance(config[name], dict):
            raise InputError(f"`{name}` is {config[name]!r}, no mapping of settings")
        if taken := [field for field in given if field in config[name]]:
            raise InputError(f"`{name}` has {', '.join(taken)}, which each round sets itself: leave it out")
    if missing := [name for name in ("mode", "dataset") if name not in config["pairs"]]:
        raise InputError(f"`pairs` lacks {', '.join(missing)}")
    if config["pairs"]["mode"] == "corrupt":
        raise InputError("`pairs` has the mode corrupt, which draws nothing with the model: set best-worst or target")
    # Before hours of drawing
    parser = import_module(f"trl_focus.scripts.{METHODS[config['method']]}").make_parser()
    try:
        check_file(parser, _training(config, [], config["output_dir"]))
    except InputError as error:
        raise InputError(f"`train`: {error}") from error
    return config
