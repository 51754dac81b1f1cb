# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""`trl-focus train`: its command line, its processes, and what it exits with."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from tests.fixtures.broken import pair, table
from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES
from trl_focus.cli import main, train
from trl_focus.errors import InputError
from trl_focus.scripts import diffusion_dpo, focus_dpo, training
from trl_focus.scripts.arguments import ScriptArguments, parse


CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("*.yaml"))
METHODS = {"focus": focus_dpo, "dpo": diffusion_dpo}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    PIPELINES["sd15"]().save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, base):
    """Writes a configuration file, with changes; a None leaves a field out."""
    make_pairs(4).save_to_disk(tmp_path / "pairs")

    def write(**changes):
        config = {
            "model_name_or_path": str(base),
            "dataset_name": str(tmp_path / "pairs"),
            "output_dir": str(tmp_path / "out"),
            "resolution": 64,
            "per_device_train_batch_size": 2,
            "max_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **changes,
        }
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
        return str(file)

    return write


@pytest.fixture
def launched(monkeypatch):
    """Records what would be launched."""
    calls = []
    monkeypatch.setattr(train, "_launch", lambda *args: calls.append(args) or 0)
    monkeypatch.setattr(train, "_is_launched_by_default", lambda: False)
    return calls


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("method", METHODS)
def test_every_example_is_taken(config, method, tmp_path):
    arguments = ["--config", str(config), "--use_cpu", "--output_dir", str(tmp_path)]
    parsed = parse(METHODS[method].make_parser(), arguments)
    assert parsed.launch == [] and parsed.script == arguments
    assert parsed.arguments[1].max_steps == yaml.safe_load(config.read_text())["max_steps"]


def test_trains_in_this_process(run, launched, tmp_path, capsys):
    assert main(["train", "dpo", "--config", run(), "--learning_rate", "1e-4"]) == 0
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()
    assert launched == []
    assert "The LoRA is in" in capsys.readouterr().out


def test_the_card_of_every_save_names_the_data(run, launched, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "named_in_card", lambda arguments: "ann/pairs")
    assert main(["train", "dpo", "--config", run()]) == 0
    for folder in ("out", "out/checkpoint-1"):
        assert "datasets: ann/pairs" in (tmp_path / folder / "README.md").read_text()


def test_arguments_of_the_launcher_are_taken_out(run, launched):
    config = run(num_machines=1, use_cpu=True)
    line = ["--config", config, "--seed", "2", "--num_processes", "2", "--multi_gpu", "--max_steps=3"]
    assert main(["train", "focus", *line]) == 0
    ((module, launch, script),) = launched
    assert module == "trl_focus.scripts.focus_dpo"
    assert launch == ["--num_machines", "1", "--num_processes", "2", "--multi_gpu"]
    assert script == ["--config", config, "--seed", "2", "--max_steps=3"]
    # what is launched reads the same file, and passes over what was not meant for it
    assert parse(focus_dpo.make_parser(), script).arguments[1].seed == 2


def test_flags_of_the_launcher_in_a_file(run, launched):
    assert main(["train", "dpo", f"--config={run(multi_gpu=True, tpu=False)}"]) == 0
    assert launched[0][1] == ["--multi_gpu"]


def test_presets_of_trl(run, launched):
    assert main(["train", "dpo", "--config", run(accelerate_config="multi_gpu"), "--num_processes", "2"]) == 0
    option, file, *rest = launched[0][1]
    assert option == "--config_file" and Path(file).name == "multi_gpu.yaml" and rest == ["--num_processes", "2"]


LAUNCH = [
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]


def test_two_processes(run, tmp_path):
    command = [
        sys.executable,
        "-m",
        "trl_focus",
        "train",
        "dpo",
        "--config",
        run(),
        *LAUNCH,
        "--main_process_port",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state = yaml.safe_load((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["global_step"] == 1
    assert done.stdout.count("The LoRA is in") == 1


@pytest.mark.parametrize(
    "codes, code", [({0: 2, 1: 1}, 2), ({0: 1, 1: -9}, 1), (2, 2), (1, 1), (-9, 1)], ids=["several", "died", *"21k"]
)
def test_exit_code_of_what_was_launched(codes, code, run, monkeypatch):
    def fail(args):
        assert args.module and args.training_script == "trl_focus.scripts.diffusion_dpo"
        if isinstance(codes, int):
            raise subprocess.CalledProcessError(codes, "python")
        raise ChildFailedError("script", {rank: ProcessFailure(rank, 9, exit, "") for rank, exit in codes.items()})

    monkeypatch.setattr("accelerate.commands.launch.launch_command", fail)
    assert main(["train", "dpo", "--config", run(), *LAUNCH]) == code


REFUSED = {
    "unknown field": ({"resolutoin": 64}, "the unknown field `resolutoin`: did you mean `resolution`?"),
    "no model": ({"model_name_or_path": None}, "model_name_or_path"),
    "no data": ({"dataset_name": None}, "give either `dataset_name`"),
    "data that is not there": ({"dataset_name": "./nowhere"}, "./nowhere is no folder"),
    "model that is not there": ({"model_name_or_path": "./nowhere"}, "nowhere"),
    "split that is not there": ({"dataset_train_split": "dev"}, "there is no split 'dev'; it has 'train'"),
    "value out of range": ({"beta": -1}, "beta"),
    "resolution that the model can't make": ({"resolution": 60}, "`resolution` is 60"),
    "evaluation without data": ({"eval_strategy": "steps"}, "there is no split 'test'"),
    "columns": ({"columns": {"prompt": "caption"}}, "`columns` names 'caption', and the dataset has 'prompt'"),
    "LoRA of nothing": ({"lora_target_modules": ["nothing"]}, "nothing"),
    "environment": ({"env": "a"}, "`env` field should be a dict"),
    "list in place of a number": ({"resolution": [64]}, "`resolution` is [64] in the configuration file"),
    "half a pair": ({"per_device_train_batch_size": 2.5}, "is 2.5 in the configuration file, and should be a whole"),
    "mixture of one": ({"dataset_name": None, "datasets": "./nowhere"}, "./nowhere is no folder"),
    "mixture of a number": ({"dataset_name": None, "datasets": [{"path": 3}]}, "it needs `path`, an id or a folder"),
    "shares in words": (
        {"dataset_name": None, "datasets": [{"path": "pairs", "fraction": "half"}]},
        "`fraction` of `datasets` is 'half'",
    ),
    "both kinds of data": ({"datasets": ["a"]}, "either `dataset_name`"),
}


@pytest.mark.parametrize("changes, message", REFUSED.values(), ids=REFUSED)
def test_refused(changes, message, run, launched, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "dpo", "--config", run(**changes)]) == 2
    error = capsys.readouterr().err.split("error: ")[-1]
    assert message in error and len(error.splitlines()) <= 3
    assert not (tmp_path / "out").exists()


NO_CHECKPOINT = {
    "./nowhere": "no checkpoint of this trainer",
    "last-checkpoint": "set `hub_model_id`",
    "true": "no checkpoint in `output_dir`",
}


@pytest.mark.parametrize("checkpoint, message", NO_CHECKPOINT.items(), ids=NO_CHECKPOINT)
def test_checkpoint_that_is_not_there(checkpoint, message, run, launched, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "dpo", "--config", run(), "--resume_from_checkpoint", checkpoint]) == 2
    assert message in capsys.readouterr().err.split("error: ")[-1]


def test_refused_on_the_command_line(run, launched, capsys, tmp_path):
    config = run()
    for line, message in [
        (["--config", config, "--resolutoin", "64"], "the command line has the unknown field `resolutoin`"),
        (["--config", str(tmp_path / "none.yaml")], "none.yaml"),
        (["--config"], "`--config` needs a YAML file"),
        (["--config", config, "--max_steps", "many"], "invalid int value: 'many'"),
        (["--config", config, "--columns", "{"], "is not JSON"),
        (["--config", config, "--accelerate_config", "nothing"], "nothing is neither a file nor"),
    ]:
        assert main(["train", "focus", *line]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text("a: [")
    assert main(["train", "focus", "--config", config]) == 2
    assert "is not YAML" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_refused_in_the_middle_of_a_stream(run, launched, capsys, tmp_path, workers):
    table(pair(), pair(prompt="")).save_to_disk(tmp_path / "stream")
    config = run(
        dataset_name=str(tmp_path / "stream"), dataset_streaming=True, max_steps=5, dataloader_num_workers=workers
    )
    assert main(["train", "dpo", "--config", config]) == 2
    assert "row 1 of the stream: `prompt` is empty" in capsys.readouterr().err


def test_failures_raise(run, launched, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr(diffusion_dpo.DiffusionDPOTrainer, "train", fail)
    with pytest.raises(ValueError, match="a bug") as raised:
        main(["train", "dpo", "--config", run()])
    assert not isinstance(raised.value, InputError)


def test_script_alone(run, capsys):
    line = ["--config", run(dataset_name="./nowhere")]
    assert training.run(diffusion_dpo.make_parser, diffusion_dpo.main, line) == 2
    assert (
        capsys.readouterr().err
        == "error: ./nowhere is no folder. Give the folder of a dataset, or its id on the Hub\n"
    )


class TestScriptArguments:
    def test_mixture(self):
        given = ["user/a", '{"path": "user/b", "fraction": 0.5}', {"path": "user/c"}]
        parts = ScriptArguments(datasets=given).datasets
        assert parts == [{"path": "user/a"}, {"path": "user/b", "fraction": 0.5}, {"path": "user/c"}]

    def test_a_single_one_without_a_list(self):
        assert ScriptArguments(datasets="user/a").datasets == [{"path": "user/a"}]
        assert ScriptArguments(datasets={"path": "user/a"}).datasets == [{"path": "user/a"}]

    def test_columns(self):
        assert ScriptArguments("a", columns='{"prompt": "caption"}').columns == {"prompt": "caption"}

    @pytest.mark.parametrize(
        "given, message",
        [
            ({"dataset_name": "a", "columns": "[]"}, "not a mapping"),
            ({"dataset_name": "a", "columns": ["prompt"]}, "not a mapping"),
            ({"datasets": [3]}, "give an id"),
            ({"datasets": ["a"], "columns": {"prompt": "caption"}}, "each entry of"),
            ({"dataset_name": "a", "test_split_size": 1}, "give a share"),
            ({"dataset_name": "a", "test_split_size": 2.5}, "give a share"),
            ({"dataset_name": "a", "test_split_size": 0.5, "dataset_streaming": True}, "length is known"),
        ],
        ids=str,
    )
    def test_refused(self, given, message):
        with pytest.raises(InputError, match=message):
            ScriptArguments(**given)
