# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json
from pathlib import Path

from peft import LoraConfig
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..errors import InputError
from ..hub.checkpoint import download_checkpoint
from ..hub.lora import lora_metadata
from .policy import POLICY, REFERENCE, add_frozen_copy


logger = logging.get_logger(__name__)

STATE_NAME = "diffusion_dpo_state.json"
ON_HUB = "last-checkpoint"  # the name that `hub_strategy="checkpoint"` gives it
PICKLED_WEIGHTS = ("adapter_model.bin", "pytorch_model.bin", "pytorch_model.bin.index.json")


def find_checkpoint(which: str | bool, trainer) -> Path:
    """
    The folder of a checkpoint, fetched from the Hub if it is to come from there.

    Raises:
        InputError: If there is none.
    """
    args = trainer.args
    if which is True:
        found = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
        if found is None:
            raise InputError(
                f"There is no checkpoint in `output_dir` ({args.output_dir}) to resume from. Leave "
                "`resume_from_checkpoint` out to start anew."
            )
        return Path(found)
    if str(which) != ON_HUB or Path(which).is_dir():
        return Path(which)
    if args.hub_model_id is None:
        raise InputError(
            f"`resume_from_checkpoint={ON_HUB!r}` comes from the repository that the run is pushed to: set `hub_model_id`."
        )
    if trainer.is_deepspeed_enabled:
        raise InputError(
            "DeepSpeed reads its checkpoints by pickle, which can run code, so none is taken from the Hub. Download it with "
            f"`hf download {args.hub_model_id}`, and resume from the folder if you trust it."
        )
    with args.main_process_first(desc="fetching the checkpoint"):  # the others read its cache
        return download_checkpoint(args.hub_model_id, args.hub_revision, args.hub_token)


def update_size(trainer) -> dict[str, int]:
    """What an update is made of: pairs of a batch, batches that a process accumulates, and processes."""
    return {
        "per_device_train_batch_size": trainer._train_batch_size,
        "gradient_accumulation_steps": trainer.args.gradient_accumulation_steps,
        "processes": trainer.accelerator.num_processes,
    }


def _check_update_size(trainer, checkpoint: Path, theirs: dict[str, int]):
    """
    Refuses to go on with updates of another size, which would repeat rows of the epoch and miss others: what was trained is
    known by the number of updates. Other numbers of processes are fine where as many batches make an update.
    """
    args, ours = trainer.args, update_size(trainer)
    pairs, batches = theirs["per_device_train_batch_size"], theirs["gradient_accumulation_steps"] * theirs["processes"]
    processes = ours["processes"]
    same_batches = batches == ours["gradient_accumulation_steps"] * processes
    same_pairs = args.auto_find_batch_size or pairs == ours["per_device_train_batch_size"]
    if args.ignore_data_skip or (same_pairs and same_batches):
        return
    if batches % processes == 0:
        way_out = f"Set `per_device_train_batch_size={pairs}` and `gradient_accumulation_steps={batches // processes}`"
    else:
        counts = [str(count) for count in range(1, batches + 1) if batches % count == 0]
        way_out = f"Set `per_device_train_batch_size={pairs}` and start {' or '.join(counts)} processes"
    raise InputError(
        f"{checkpoint} was trained with {batches} batches of {pairs} an update, and here it would be "
        f"{ours['gradient_accumulation_steps'] * processes} of {ours['per_device_train_batch_size']}: rows of this epoch would "
        f"be trained twice, and others not at all. {way_out}, or `ignore_data_skip=True` to begin an epoch anew."
    )


def restore(trainer, checkpoint: Path):
    """
    Brings a trainer to where a checkpoint of it stood, but for what transformers restores itself.

    Raises:
        InputError: If the checkpoint is not whole, of another family, another kind of LoRA or updates of another size, or its
            reference is not here.
    """
    for name in (STATE_NAME, TRAINER_STATE_NAME):
        if not (checkpoint / name).is_file():
            raise InputError(
                f"{checkpoint} is no checkpoint of this trainer: it has no {name}. Give a folder `checkpoint-<step>` of "
                "`output_dir`, or True for the last one there. A saved LoRA is continued by loading it into the pipeline."
            )
    if pickled := [name for name in PICKLED_WEIGHTS if (checkpoint / name).exists()]:
        raise InputError(
            f"{checkpoint} holds weights as a pickle ({', '.join(pickled)}), which this trainer does not write and does not "
            "read: it could run code. Remove it, and resume from the safetensors beside it."
        )
    state = json.loads((checkpoint / STATE_NAME).read_text())
    here = type(trainer.family).__name__, type(trainer.family.denoiser).__name__
    if (state["family"], state["denoiser"]) != here:
        raise InputError(
            f"{checkpoint} is of the family {state['family']} ({state['denoiser']}), and this model of {here[0]} "
            f"({here[1]}). Resume with the model that it was trained on."
        )
    theirs, ours = map(lora_metadata, (LoraConfig.from_pretrained(checkpoint), trainer.policy.peft_config[POLICY]))
    if other := [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]:
        raise InputError(
            f"{checkpoint} holds a LoRA with {', '.join(f'{key}={theirs.get(key)!r}' for key in other)}, and this trainer "
            f"has {', '.join(f'{key}={ours.get(key)!r}' for key in other)}. Give the `peft_config` it was trained with."
        )
    if "update" in state:  # not in checkpoints of earlier versions
        _check_update_size(trainer, checkpoint, state["update"])
    if state["reference"] != trainer.reference:
        if "model" in (state["reference"], trainer.reference):
            raise InputError(
                f"{checkpoint} was trained with `reference={state['reference']!r}`, and this trainer has "
                f"{trainer.reference!r}. {'Give' if state['reference'] == 'model' else 'Leave out'} the `ref_model`."
            )
        logger.warning(f"Restoring `reference={state['reference']!r}` from {checkpoint}.")
        trainer.reference = state["reference"]
        if trainer.reference == "initial_adapter":
            add_frozen_copy(trainer.policy)  # its weights come with the checkpoint
        else:
            trainer.policy.delete_adapter(REFERENCE)
    if trainer.reference == "initial_adapter":
        # transformers before 5.23 would restore the frozen copy alone
        trainer.policy.load_adapter(str(checkpoint), POLICY, is_trainable=True)
    if trainer.beta_controller is not None and state["beta_controller"] is not None:
        trainer.beta_controller.load_state_dict(state["beta_controller"])
