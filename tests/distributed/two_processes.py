# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What `test_two_processes.py` runs in each of two processes (and in one, to compare): writes its findings to a file.

    torchrun --nproc_per_node 2 -m tests.distributed.two_processes FOLDER
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from tests.fixtures.pairs import make_pairs
from tests.fixtures.trainers import lora_of, make_focus_trainer


DATA = {"train_dataset": make_pairs(10, n_references=1), "eval_dataset": make_pairs(5, n_references=0, seed=1)}
# plain gradient descent at a small beta, so that sums in another order stay close
GENTLE = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 1e-3, "beta": 20.0}


def flat(trainer):
    return torch.cat([value.flatten() for value in lora_of(trainer).values()])


def train(folder, **kwargs):
    trainer = make_focus_trainer(folder, **{**DATA, **kwargs})
    trainer.train()
    return trainer


def one_epoch(folder, batch_size):
    """10 rows in batches of 2 for 2 processes: 5 batches, so that one process gets one that does not count."""
    trainer = train(
        folder,
        per_device_train_batch_size=batch_size,
        max_steps=-1,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        # With two processes, a forward within the backward pass comes between DDP's
        one_forward=batch_size == 4,
        offload_blocks=batch_size == 2,
        **GENTLE,
    )
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {
        "weights": flat(trainer),
        "losses": [log["loss"] for log in logs],
        "margins": [log["rewards/margins"] for log in logs],
        "eval": {k: v for k, v in trainer.evaluate().items() if "loss" in k or "rewards" in k or "errors" in k},
    }


def resume(folder):
    settings = {
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 3,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 1,
        "target_gradient_factor": 0.3,
        "beta_warmup_steps": 0,
    }
    straight = train(folder / "straight", **settings)
    checkpoint = folder / "straight" / "checkpoint-3"
    resumed = make_focus_trainer(folder / "resumed", **{**DATA, **settings})
    resumed.train(resume_from_checkpoint=str(checkpoint))
    return {
        "straight": flat(straight),
        "resumed": flat(resumed),
        "betas": (straight.beta.item(), resumed.beta.item()),
        "files": sorted(path.name for path in checkpoint.iterdir()),
    }


def elastic(folder, checkpoint=None):
    """An epoch of updates of two batches, which two processes take at once and one accumulates; or the rest of one."""
    processes = Accelerator(cpu=True).num_processes
    trainer = make_focus_trainer(
        folder,
        **{**DATA, **GENTLE},
        gradient_accumulation_steps=2 // processes,
        max_steps=-1,
        num_train_epochs=1,
        save_strategy="steps",
        save_steps=1,
    )
    rows, compute_loss = [], trainer.compute_loss

    def seen(model, inputs, *args, **kwargs):
        rows.extend(row for row, counts in zip(inputs["row"], inputs["counts"], strict=True) if counts)
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = seen
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint / "checkpoint-1"))
    return {"rows": gather_object(rows), "weights": flat(trainer), "steps": trainer.state.global_step}


def not_finite(folder):
    """A map that is not finite on one process stops both, with weights unchanged on both."""
    trainer = make_focus_trainer(
        folder,
        focus_map=lambda c: torch.full(
            (len(c.level_B), *c.grid), float("nan") if torch.distributed.get_rank() else 1.0
        ),
        **DATA,
    )
    before = flat(trainer)
    try:
        trainer.train()
    except FloatingPointError as error:
        return {"message": str(error), "unchanged": torch.equal(before, flat(trainer))}


def stream(folder):
    trainer = make_focus_trainer(
        folder,
        train_dataset=make_pairs(7).to_iterable_dataset(),
        max_steps=4,
        eval_dataset=DATA["eval_dataset"].to_iterable_dataset(),
    )
    trainer.train()
    return {"eval": trainer.evaluate()["eval_loss"], "weights": flat(trainer)}


def main(folder):
    trainer = make_focus_trainer(folder / "probe", **DATA)
    processes, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    found = {"processes": processes, "epoch": one_epoch(folder / "epoch", batch_size=4 // processes)}
    if processes > 1:
        found |= {"resume": resume(folder / "resume"), "not_finite": not_finite(folder / "nan")}
        found["straight"] = elastic(folder / "of-two")
    other = folder / ("of-one" if processes > 1 else "of-two")
    found["elastic"] = elastic(folder / f"elastic-{processes}", other)
    found["stream"] = stream(folder / "stream")
    torch.save(found, folder / f"found-{processes}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
