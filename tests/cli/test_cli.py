# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import tomllib
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from trl_focus import __version__
from trl_focus.cli import main
from trl_focus.errors import InputError, refusals


ROOT = Path(__file__).parents[2]


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "trl_focus", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["validate", "--help"],
        ["evaluate", "--help"],
        ["card", "--help"],
        ["train", "--help"],
        ["masks", "--help"],
        ["inspect", "--help"],
        ["env"],
    ],
    ids=str,
)
def test_light_commands(arguments):
    """What takes seconds to import is left alone. Seconds themselves differ too much between machines."""
    done = command(*arguments, PYTHONPROFILEIMPORTTIME="1")
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 0 and done.stdout and not said
    imported = {line.rsplit("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    heavy = {"datasets", "diffusers", "huggingface_hub.hf_api", "numpy", "peft", "torch", "transformers", "trl"}
    assert not imported & heavy - ({"numpy", "torch"} if arguments == ["env"] else set())


def test_help_names_every_command():
    text = command("--help").stdout
    for name in (
        "pairs",
        "masks",
        "inspect",
        "validate",
        "prepare",
        "train",
        "rounds",
        "evaluate",
        "families",
        "card",
        "env",
    ):
        assert f"\n    {name} " in text


def test_script_is_declared():
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["scripts"] == {"trl-focus": "trl_focus.cli:main"}


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["train"], ["train", "sft"], ["validate"], ["validate", "a", "--row"]]
)
def test_misuse(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2 and "usage: trl-focus" in capsys.readouterr().err


def test_env_tells_versions_and_nothing_of_the_user(tmp_path):
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(
        "num_processes: 3\ndeepspeed_config:\n  deepspeed_config_file: /home/me/secret.json\n"
    )
    (tmp_path / "token").write_text("hf_secret")
    out = command("env", HF_TOKEN="hf_secret", HF_HOME=str(tmp_path)).stdout
    assert f"- trl-focus: {__version__}\n" in out and f"- huggingface_hub: {huggingface_hub.__version__}\n" in out
    assert "- accelerate config: num_processes=3\n" in out
    assert "secret" not in out and str(tmp_path) not in out and str(Path.home()) not in out


@pytest.mark.parametrize("text", ["a: [", "- a"])
def test_env_with_a_broken_config_of_accelerate(text, tmp_path):
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(text)
    done = command("env", HF_HOME=str(tmp_path))
    assert done.returncode == 0 and "- accelerate config: there, but no YAML mapping\n" in done.stdout


def test_families(capsys):
    assert main(["families", "--json"]) == 0
    assert any("Flux2Pipeline" in row["pipelines"] for row in json.loads(capsys.readouterr().out))


class TestCard:
    def test_of_a_folder(self, tmp_path, capsys):
        (tmp_path / "README.md").write_text("---\nlibrary_name: diffusers\n---\n\n# A *good* model\n")
        assert main(["card", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert "library_name: diffusers" in out and "A good model" in out

    def test_terminal_is_left_alone(self, tmp_path, capsys):
        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\na \x1b[31mred\x1b]0;title\x07 card\n")
        assert main(["card", str(tmp_path)]) == 0
        assert "\x1b" not in (out := capsys.readouterr().out) and "\x07" not in out and "card" in out

    def test_metadata_that_is_no_yaml(self, tmp_path, capsys):
        (tmp_path / "README.md").write_text("---\n- a\n- b\n---\n\n# A model\n")
        assert main(["card", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith("error: repo card metadata block should be a dict")

    def test_that_is_not_there(self, tmp_path, capsys):
        assert main(["card", str(tmp_path)]) == 2
        assert "has no README.md" in capsys.readouterr().err

    def test_hub_out_of_reach(self, capsys):
        assert main(["card", "someone/something"]) == 1
        assert "the Hub can't be reached" in capsys.readouterr().err


class Response:
    def __init__(self, status_code):
        self.status_code, self.headers, self.request = status_code, {}, None


def http_error(status):
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    error.response = Response(status)
    return error


class TestRefusals:
    @pytest.mark.parametrize(
        "error",
        [
            ValueError("a"),
            TypeError("a"),
            ImportError("a"),
            FileNotFoundError(2, "a"),
            PermissionError(13, "a"),
            OSError("someone/model is not a local folder"),
            http_error(401),
            http_error(404),
        ],
        ids=repr,
    )
    def test_input(self, error):
        with pytest.raises(InputError) as raised, refusals():
            raise error
        assert raised.value.__cause__ is error

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("out of memory"),
            OSError(28, "No space left on device"),
            ConnectionError("a"),
            TimeoutError("a"),
            KeyError("a"),
            MemoryError("a"),
            http_error(500),
            http_error(429),
            LocalEntryNotFoundError("a"),
        ],
        ids=repr,
    )
    def test_failure(self, error):
        with pytest.raises(type(error)) as raised, refusals():
            raise error
        assert raised.value is error
