# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the training scripts, and how they are parsed."""

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

import yaml

from .._compat import TrlParser, resolve_accelerate_config_argument
from ..errors import InputError, refusals


@dataclass
class ScriptArguments:
    """
    Arguments of a script: the data.

    Parameters:
        dataset_name (`str`, *optional*):
            Hub id or folder of preference pairs. Either this or `datasets` is needed.
        dataset_config (`str`, *optional*):
            Configuration of the dataset.
        dataset_revision (`str`, *optional*):
            Branch, tag or commit of the dataset on the Hub.
        dataset_train_split (`str`, *optional*, defaults to `"train"`):
            Split to train on.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on, if `eval_strategy` asks for evaluation.
        dataset_streaming (`bool`, *optional*, defaults to `False`):
            Whether to stream the dataset.
        columns (`dict[str, str]` or `str`, *optional*):
            For names of the preference schema, those of the dataset: `{"prompt": "caption"}`.
        datasets (`list[dict]` or `list[str]`, *optional*):
            A mixture in place of `dataset_name`: ids, or dictionaries with `path` and optionally `name`, `split`, `revision`,
            `columns` and `fraction`.
        test_split_size (`float` or `int`, *optional*):
            Share or number of rows that are held out for evaluation, in place of `dataset_test_split`.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of preference pairs. Either this or `datasets` is needed."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the dataset on the Hub."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "Split to evaluate on, if `eval_strategy` asks for evaluation."}
    )
    dataset_streaming: bool = field(default=False, metadata={"help": "Whether to stream the dataset."})
    columns: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "For names of the preference schema, those of the dataset, as a mapping or as JSON: "
            '`{"prompt": "caption"}`.'
        },
    )
    datasets: list[str] | None = field(
        default=None,
        metadata={
            "help": "A mixture in place of `dataset_name`: ids, or mappings (JSON on the command line) with `path` and "
            "optionally `name`, `split`, `revision`, `columns` and `fraction`."
        },
    )
    test_split_size: float | None = field(
        default=None,
        metadata={
            "help": "Share (below 1) or number of rows that are held out for evaluation, in place of `dataset_test_split`."
        },
    )

    def __post_init__(self):
        if isinstance(self.columns, str):
            self.columns = _mapping("columns", self.columns)
        if self.columns is not None and not isinstance(self.columns, dict):
            raise InputError(f"`columns` is {self.columns!r}, not a mapping of names")
        # A YAML file may have a single one that is in no list
        alone = isinstance(self.datasets, str | dict)
        parts = [_part(entry) for entry in ([self.datasets] if alone else self.datasets or [])]
        self.datasets = parts or None
        if (self.dataset_name is None) == (self.datasets is None):
            raise InputError("give either `dataset_name` (a Hub id or a folder) or `datasets`, a mixture of several")
        if self.datasets and (self.columns or self.dataset_config or self.dataset_revision):
            raise InputError(
                "`columns`, `dataset_config` and `dataset_revision` go with `dataset_name`: each entry of `datasets` has its "
                "own `columns`, `name` and `revision`"
            )
        size = self.test_split_size
        if size is not None and (size <= 0 or (size > 1 and size != int(size)) or size == 1):
            raise InputError(f"`test_split_size` is {size}: give a share between 0 and 1, or a number of rows above 1")
        if size is not None and self.dataset_streaming:
            raise InputError("`test_split_size` needs a dataset whose length is known: leave `dataset_streaming` off")


def _mapping(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"`{name}` is {text!r}, which is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"`{name}` is {text!r}, not a mapping of names")
    return value


def _part(entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):
        return _mapping("datasets", entry) if entry.lstrip().startswith("{") else {"path": entry}
    if not isinstance(entry, dict):
        raise InputError(f"an entry of `datasets` is {entry!r}: give an id, or a mapping with `path`")
    return entry


@dataclass
class ModelArguments:
    """
    Arguments of a script: the model and its LoRA.

    Parameters:
        model_name_or_path (`str`):
            Hub id or folder of a diffusers pipeline.
        model_revision (`str`, *optional*):
            Branch, tag or commit of the pipeline.
        lora_r (`int`, *optional*, defaults to `16`):
            Rank of the LoRA.
        lora_alpha (`int`, *optional*, defaults to `16`):
            The LoRA counts `lora_alpha / lora_r` times.
        lora_target_modules (`list[str]`, *optional*):
            Names of the layers that get LoRA. Defaults to those of the model's family.
    """

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of a diffusers pipeline."})
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the pipeline on the Hub."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA."})
    lora_alpha: int = field(default=16, metadata={"help": "The LoRA counts `lora_alpha / lora_r` times."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the layers that get LoRA. Defaults to those of the model's family."},
    )


def make_parser(config_class: type, name: str, subparsers=None, prog: str | None = None):
    """A parser of a script's arguments, or its subcommand of a command, as TRL's scripts make them."""
    dataclass_types = (ScriptArguments, config_class, ModelArguments)
    if subparsers is not None:
        return subparsers.add_parser(name, help=f"Run the {name} training script", dataclass_types=dataclass_types)
    return _Parser(dataclass_types, prog=prog)


class _Parser(TrlParser):
    """Refuses in words."""

    def error(self, message: str):
        raise InputError(message)  # without the usage, which fills several screens

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        # argparse converts strings, and takes anything else of a file as it is
        for name, kinds in self._kinds.items():
            value = kwargs.get(name)
            if value is None or isinstance(value, str) or not kinds <= {int, float}:
                continue
            whole = float not in kinds
            if not isinstance(value, int | float) or (whole and value != int(value)):
                kind = "a whole number" if whole else "a number"
                raise InputError(f"`{name}` is {value!r} in the configuration file, and should be {kind}")
        return super().set_defaults_with_config(**kwargs)

    @property
    def _kinds(self) -> dict[str, set[type]]:
        """Types of each field, without that of None."""
        hints = [hint for cls in self.dataclass_types for hint in get_type_hints(cls).items()]
        return {name: {*(get_args(hint) or (hint,))} - {NoneType} for name, hint in hints}


def _launch_actions() -> dict[str, Any]:
    """Options of `accelerate launch` by name, and its `accelerate_config`, as TRL calls a file or a preset."""
    from accelerate.commands.launch import launch_command_parser

    parser: ArgumentParser = launch_command_parser()
    named = {
        option.lstrip("-").replace("-", "_"): action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    return {**named, "accelerate_config": named["config_file"]}


def _launch_args(remaining: Sequence[str], known: Sequence[str], from_file: bool) -> list[str]:
    """What the script does not know, for `accelerate launch`; refuses what that does not know either."""
    launch, actions = [], _launch_actions()
    words = list(remaining)
    while words:
        name, _, value = words.pop(0).partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or key not in actions:
            near = get_close_matches(key, [*known, *actions], n=1)
            place = "the configuration file" if from_file else "the command line"
            raise InputError(f"{place} has the unknown field `{key}`{f': did you mean `{near[0]}`?' if near else ''}")
        flag = actions[key].nargs == 0
        if not flag and not value:
            if not words:
                raise InputError(f"`{name}` needs a value")
            value = words.pop(0)
        elif flag and from_file:
            value = words.pop(0)
            if value.lower() == "false":
                continue
        launch += [f"--{key}"] if flag else [f"--{key}", value]
    return launch


def check_file(parser: TrlParser, settings: Mapping[str, Any]):
    """
    Checks what a configuration file holds, as [`parse`] does, up to what only the machine that trains can tell: training
    arguments take its accelerator as they are made.

    Args:
        parser (`TrlParser`):
            Parser of the script.
        settings (`Mapping[str, Any]`):
            What the file holds.

    Raises:
        InputError: If neither the script nor `accelerate launch` knows a field, or a value is of no use.
    """
    with refusals():
        remaining = parser.set_defaults_with_config(**{name: settings[name] for name in settings if name != "env"})
        _launch_args(remaining, [action.dest for action in parser._actions], True)
        parsed, _ = parser.parse_known_args([])  # converts strings, and compares none with the choices
    for action in parser._actions:
        value = settings.get(action.dest)
        if value is not None and action.choices is not None and getattr(parsed, action.dest) not in action.choices:
            raise InputError(f"`{action.dest}` is {value!r}; there are {', '.join(map(str, action.choices))}")


def _without(words: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Words without those that were taken out of them, which are in the same order."""
    taken = list(taken)
    return [word for word in words if not (taken and word == taken[0] and taken.pop(0))]


class Parsed(NamedTuple):
    """
    A command line of a script, taken apart.

    Attributes:
        arguments (`list`):
            The script's dataclasses.
        launch (`list[str]`):
            Arguments for `accelerate launch`, from the file and the command line.
        script (`list[str]`):
            The command line without them, for the script that is launched.
    """

    arguments: list
    launch: list[str]
    script: list[str]


def parse(parser: TrlParser, argv: Sequence[str]) -> Parsed:
    """
    Parses arguments of a script that may be mixed with those of `accelerate launch`, in the file and on the command line.

    Args:
        parser (`TrlParser`):
            Parser of the script.
        argv (`Sequence[str]`):
            Command line, without the program.

    Raises:
        InputError: If neither knows a field, or a field's value is refused.
    """
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if words and words[-1] == "--config":
        raise InputError("`--config` needs a YAML file")
    try:
        with refusals():
            *arguments, from_file, from_line = parser.parse_args_and_config(
                words, return_remaining_strings=True, separate_remaining_strings=True
            )
            if not from_file and not from_line:
                return Parsed(arguments, [], words)
            known = [action.dest for action in parser._actions]
            launch = _launch_args(from_file, known, True) + _launch_args(from_line, known, False)
            return Parsed(arguments, resolve_accelerate_config_argument(launch), _without(words, from_line))
    except yaml.YAMLError as error:
        raise InputError(f"the configuration file is not YAML: {error}") from error
