# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What `test_sharded.py` runs in each of two processes, with the model sharded by FSDP2; and in one, whole, to compare.

    torchrun --nproc_per_node 2 -m tests.distributed.sharded FOLDER
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from peft import LoraConfig
from safetensors.torch import load_file

from tests.distributed.launch import ROOT
from tests.distributed.two_processes import DATA, GENTLE
from tests.fixtures.trainers import make_focus_trainer


def use_fsdp2():
    """Sets what `accelerate launch` would for `examples/accelerate/fsdp2.yaml`, and has accelerate take it on the CPU."""
    config = load_config_from_file(str(ROOT / "examples" / "accelerate" / "fsdp2.yaml"))
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    os.environ.update({name.upper(): str(value) for name, value in config.fsdp_config.items()})
    init = PartialState.__init__

    def init_as_accelerator(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:  # for which accelerate has no FSDP, though torch has
            self.distributed_type = DistributedType.MULTI_NPU

    PartialState.__init__ = init_as_accelerator


def run(folder, checkpoint=None, **settings):
    """An epoch of 10 rows, 4 an update; or the rest of one."""
    trainer = make_focus_trainer(
        folder,
        **{**DATA, **GENTLE, **settings},
        per_device_train_batch_size=4 // Accelerator(cpu=True).num_processes,
        max_steps=-1,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    evaluation = trainer.evaluate()
    trainer.save_model()
    trainer.accelerator.wait_for_everyone()
    return {
        "type": str(trainer.accelerator.distributed_type),
        "sharded": [hasattr(weight, "full_tensor") for weight in trainer.model.parameters()],
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "norms": [log["grad_norm"] for log in trainer.state.log_history if "grad_norm" in log],
        "eval": evaluation["eval_loss"],
        "diffusers": load_file(folder / "pytorch_lora_weights.safetensors"),
        "peft": load_file(folder / "adapter_model.safetensors"),
        "files": sorted(path.name for path in (folder / "checkpoint-1").glob("*")),
    }


def not_finite(folder):
    """A gradient that is not finite; with a LoRA so small that a process has no part of some tensors."""
    trainer = make_focus_trainer(folder, peft_config=LoraConfig(r=1, target_modules=["to_q", "to_k"]), **DATA)
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: (
        compute_loss(*args, **kwargs) * (float("nan") if dist.get_rank() else 1)
    )
    try:
        trainer.train()
    except FloatingPointError as error:
        changed = [p.full_tensor().any().item() for name, p in trainer.model.named_parameters() if "lora_B" in name]
        return {"message": str(error), "changed": changed}


def main(folder):
    use_fsdp2()
    found = {"straight": run(folder / "two")}
    adam = {"optim": "adamw_torch"}  # torch restores no state of plain gradient descent, which has none
    found["adam"] = run(folder / "adam", **adam)
    found["resumed"] = run(folder / "resumed", folder / "adam" / "checkpoint-1", **adam)
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"  # as in TRL's preset
    found["loaded"] = run(folder / "loaded", pipeline=str(folder / "base"))
    found["not_finite"] = not_finite(folder / "nan")
    torch.save(found, folder / f"found-{PartialState().process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
