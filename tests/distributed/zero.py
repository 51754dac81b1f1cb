# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What `test_zero.py` runs in each of two processes, by DeepSpeed and the files of `examples/accelerate`.

    torchrun --nproc_per_node 2 -m tests.distributed.zero FOLDER/zero2
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from tests.distributed.launch import ROOT
from tests.distributed.sharded import run
from tests.distributed.two_processes import DATA
from tests.fixtures.trainers import make_focus_trainer


def use_deepspeed(name: str):
    """Sets what `accelerate launch` would for a file, and has DeepSpeed take the CPU."""
    config = load_config_from_file(str(ROOT / "examples" / "accelerate" / f"{name}.yaml"))
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
    for key, value in config.deepspeed_config.items():
        key = key.removesuffix("_flag") if key == "zero3_init_flag" else key
        os.environ[f"ACCELERATE_DEEPSPEED_{key.upper()}"] = str(value).lower()


def not_finite(folder: Path):
    """A gradient that is not finite, of a loss that is."""
    trainer = make_focus_trainer(folder, **DATA)
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: (
        compute_loss(*args, **kwargs) * (float("nan") if dist.get_rank() else 1)
    )
    try:
        trainer.train()
    except FloatingPointError as error:
        trainer.save_model()
        trainer.accelerator.wait_for_everyone()
        weights = load_file(folder / "adapter_model.safetensors")
        return {"message": str(error), "changed": [w.any().item() for name, w in weights.items() if "lora_B" in name]}


def main(folder: Path):
    use_deepspeed(folder.name)
    adam = {"optim": "adamw_torch"}
    found = {"straight": run(folder / "two"), "adam": run(folder / "adam", **adam)}
    found["resumed"] = run(folder / "resumed", folder / "adam" / "checkpoint-1", **adam)
    found["not_finite"] = not_finite(folder / "nan")
    torch.save(found, folder / f"found-{PartialState().process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
