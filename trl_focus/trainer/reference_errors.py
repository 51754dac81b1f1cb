# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The reference's errors, computed before training."""

from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from datasets.fingerprint import Hasher

from ..data.batches import RowKey
from ..data.cached_table import CachedTable
from ..data.encoded import EncodedCollator, EncodedRows, pack
from .encoding import module_identity, saved
from .policy import REFERENCE


if TYPE_CHECKING:
    from .diffusion_dpo_trainer import DiffusionDPOTrainer


_FEATURES = datasets.Features({"encoded": datasets.Value("large_binary")})


def add_reference_errors(
    trainer: "DiffusionDPOTrainer", rows: EncodedRows, collator: EncodedCollator, draws: int, batch_size: int
):
    """
    Gives rows the errors of the reference for so many draws of noise and noise level, which epochs then take in turn. They
    are kept in files that later runs find again.

    Args:
        trainer ([`DiffusionDPOTrainer`]):
            Its reference is asked.
        rows ([`EncodedRows`]):
            Gain `ref_errors`.
        collator ([`EncodedCollator`]):
            Draws the noise and the level of each row and epoch.
        draws (`int`):
            Draws of each row, at least 1.
        batch_size (`int`):
            Pairs in one forward.

    Raises:
        ValueError: If they have to be computed, and the model is sharded.
    """
    rows.draws = draws

    def errors_of(row: int) -> dict[str, Any]:
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError(
                "`precompute_ref_errors` needs the whole model in a process, and this run shards it. Compute them in a run "
                "without FSDP or DeepSpeed (`max_steps=1` will do); this one then finds them."
            )
        parts = []
        for start in range(0, draws, batch_size):
            keys = [RowKey(row, epoch) for epoch in range(start, min(start + batch_size, draws))]
            batch = send_to_device(collator([rows[key] for key in keys]), trainer.accelerator.device)
            parts.append(torch.stack(trainer.reference_error(batch).chunk(2), dim=1))
        return {"encoded": pack(torch.cat(parts))}

    policy = trainer.accelerator.unwrap_model(trainer.model)
    args, processes, was_training = trainer.args, PartialState(), policy.training
    noise = [args.weighting_scheme, args.logit_mean, args.logit_std, args.mode_scale, args.sampling_steps]
    identity = [
        *(rows.identity, draws, collator.seed, collator.caption_dropout, noise, trainer.family.guidance_scale),
        *(trainer.accelerator.device.type, trainer.accelerator.mixed_precision, args.reference_positions),
        [*saved(trainer.pipeline.scheduler)],  # its levels are those of the noise
        _reference_identity(trainer),
    ]
    keys = [f"{content} {row}" for content, row in zip(rows.contents, rows.rows, strict=True)]
    table = CachedTable("errors", Hasher.hash(identity), keys, errors_of, _FEATURES, trainer.fetch_encoded)
    policy.eval()
    table.fill(processes.process_index, processes.num_processes)
    processes.wait_for_everyone()
    rows.ref_errors = table.whole()
    policy.train(was_training)


def _reference_identity(trainer: "DiffusionDPOTrainer") -> str:
    if trainer.ref_denoiser is not None:
        return module_identity(trainer.accelerator.unwrap_model(trainer.ref_denoiser))
    kept = f".{REFERENCE}." if trainer.reference == "initial_adapter" else None
    return module_identity(
        trainer.accelerator.unwrap_model(trainer.model), lambda name: "lora_" not in name or (kept and kept in name)
    )
