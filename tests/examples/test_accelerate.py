# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""accelerate takes the files for clusters, and what they set fits the trainer."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

from trl_focus.scripts import focus_dpo
from trl_focus.scripts.arguments import parse


ROOT = Path(__file__).parents[2]
CONFIGS = {path.stem: path for path in sorted((ROOT / "examples" / "accelerate").glob("*.yaml"))}


def launch_args(*options):
    args, *_ = _validate_launch_command(launch_command_parser().parse_args([*map(str, options), "-m", "module"]))
    return args


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_takes_it(name):
    config = load_config_from_file(str(CONFIGS[name]))  # refuses keys that it does not know
    assert isinstance(config, ClusterConfig) and config.num_processes == 8 * config.num_machines
    args = launch_args("--config_file", CONFIGS[name])
    assert args.num_processes == config.num_processes and args.mixed_precision == "bf16"
    kinds = {"multi_gpu": args.multi_gpu, "use_fsdp": args.use_fsdp, "use_deepspeed": args.use_deepspeed}
    kind = {"fsdp2": "use_fsdp", "zero2": "use_deepspeed", "zero3": "use_deepspeed"}.get(name, "multi_gpu")
    assert [key for key, value in kinds.items() if value] == [kind]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_command_that_it_names_takes_it(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = CONFIGS[name].read_text().replace("\\\n#", "")
    command = re.search(r"trl-focus train focus (.*)", text).group(1).split()
    parsed = parse(focus_dpo.make_parser(), [*command, "--use_cpu"])
    args = launch_args(*parsed.launch)
    assert str(args.config_file).endswith(f"{name}.yaml") and args.num_machines == (2 if name == "multi_node" else 1)


def test_fsdp2_fits_the_trainer(monkeypatch):
    for key, value in prepare_multi_gpu_env(launch_args("--config_file", CONFIGS["fsdp2"])).items():
        if key.startswith(("FSDP", "ACCELERATE_USE_FSDP")):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert "FULL" in str(plugin.state_dict_type)  # sharded ones hold no LoRA that diffusers loads
    assert not plugin.activation_checkpointing  # the trainer's own is on by default, and transformers refuses both
    assert not plugin.cpu_ram_efficient_loading


def test_deepspeed_fits_the_trainer():
    for name, stage in (("zero2", 2), ("zero3", 3)):
        config = load_config_from_file(str(CONFIGS[name])).deepspeed_config
        assert config["zero_stage"] == stage and not config["zero3_init_flag"]
    assert config["zero3_save_16bit_model"]


@pytest.mark.parametrize("resumes", [False, True])
def test_slurm(tmp_path, resumes):
    """Its commands, with those of Slurm replaced by what prints its arguments."""
    stubs = {"scontrol": "seq -f node%.0f 7 20000", "srun": 'shift; exec "$@"', "trl-focus": 'printf "%s\\n" "$@"'}
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    text = (ROOT / "examples" / "configs" / "flux2-klein.yaml").read_text()
    output_dir = tmp_path / "out"
    if resumes:
        (output_dir / "checkpoint-5").mkdir(parents=True)
    config = tmp_path / "run.yaml"
    config.write_text(re.sub(r"^output_dir: .*$", f"output_dir: {output_dir}  # here", text, flags=re.MULTILINE))
    slurm = {"JOB_NODELIST": "node[7-8]", "JOB_ID": "1234567", "NNODES": "2", "NODEID": "1", "GPUS_PER_NODE": "h100:4"}
    result = subprocess.run(
        ["bash", ROOT / "examples" / "slurm" / "train.sbatch", config],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"} | {f"SLURM_{key}": value for key, value in slurm.items()},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    command, method, *arguments = result.stdout.split()
    assert (command, method) == ("train", "focus")
    parsed = parse(focus_dpo.make_parser(), [*arguments, "--use_cpu"])
    args = launch_args(*parsed.launch)
    assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 8, 1)
    assert (args.main_process_ip, args.main_process_port) == ("node7", 20000 + 1234567 % 20000)
    assert args.multi_gpu
    training_args = parsed.arguments[1]
    assert training_args.output_dir == str(output_dir)
    assert training_args.resume_from_checkpoint == ("true" if resumes else None)
