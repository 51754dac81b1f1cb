# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What the denoiser finds out about each row before training, in files that later runs find again."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from datasets.fingerprint import Hasher

from ..data.batches import RowKey
from ..data.cached_table import CachedTable
from ..data.encoded import EncodedCollator, EncodedRows, pack
from .encoding import code_of, module_identity, saved
from .policy import REFERENCE


if TYPE_CHECKING:
    from .diffusion_dpo_trainer import DiffusionDPOTrainer
    from .focus_dpo_trainer import FocusDPOTrainer


_FEATURES = datasets.Features({"encoded": datasets.Value("large_binary")})


def add_reference_errors(
    trainer: "DiffusionDPOTrainer", rows: EncodedRows, collator: EncodedCollator, draws: int, batch_size: int
):
    """
    Gives rows the errors of the reference for so many draws of noise and noise level, which epochs then take in turn.

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

    def errors_of(row: int) -> torch.Tensor:
        parts = []
        for start in range(0, draws, batch_size):
            keys = [RowKey(row, epoch) for epoch in range(start, min(start + batch_size, draws))]
            batch = send_to_device(collator([rows[key] for key in keys]), trainer.accelerator.device)
            parts.append(torch.stack(trainer.reference_error(batch).chunk(2), dim=1))
        return torch.cat(parts)

    args = trainer.args
    noise = [args.weighting_scheme, args.logit_mean, args.logit_std, args.mode_scale, args.sampling_steps]
    identity = [
        *(draws, collator.seed, collator.caption_dropout, noise, trainer.family.guidance_scale),
        args.reference_positions,
        [*saved(trainer.pipeline.scheduler)],  # its levels are those of the noise
        _reference_identity(trainer),
    ]
    rows.ref_errors = _table(trainer, rows, "errors", "precompute_ref_errors", identity, errors_of)


def add_shown(trainer: "FocusDPOTrainer", rows: EncodedRows, collator: EncodedCollator):
    """
    Gives rows how far their images show each subject, as [`FocusDPOTrainer.shown`] measures it, once for each crop and flip.

    Args:
        trainer ([`FocusDPOTrainer`]):
            Its model is asked, without the LoRA.
        rows ([`EncodedRows`]):
            Gain `shown`.
        collator ([`EncodedCollator`]):
            Draws the noise of each row. It drops no caption here.

    Raises:
        ValueError: If it has to be measured, and the model is sharded.
    """
    collator = replace(collator, caption_dropout=0.0)

    def shown_of(row: int) -> torch.Tensor:
        batches = (collator([rows[RowKey(row, variant)]]) for variant in range(rows.variants))
        return torch.stack([trainer.shown(send_to_device(batch, trainer.accelerator.device)) for batch in batches])

    args = trainer.args
    identity = [
        *(collator.seed, trainer.family.guidance_scale, args.reference_positions),
        *(trainer.feature_blocks, args.focus_prior, args.focus_matching),
        [*saved(trainer.pipeline.scheduler)],
        code_of("focus/*.py", "trainer/focus_dpo_trainer.py", "trainer/precomputed.py"),
        _identity_without_lora(trainer),
    ]
    rows.shown = _table(trainer, rows, "shown", "subject_gate", identity, shown_of)


def _table(
    trainer: "DiffusionDPOTrainer",
    rows: EncodedRows,
    name: str,
    setting: str,
    identity: list,
    make: Callable[[int], torch.Tensor],
) -> datasets.Dataset:
    """What `make` gives for each row, computed with the model in eval mode where there is no file of it."""
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled

    def made(row: int) -> dict[str, Any]:
        if is_sharded:
            raise ValueError(
                f"`{setting}` needs the whole model in a process, and this run shards it. Compute it in a run without FSDP "
                "or DeepSpeed (`max_steps=1` will do); this one then finds it."
            )
        return {"encoded": pack(make(row))}

    accelerator, processes, was_training = trainer.accelerator, PartialState(), trainer.policy.training
    identity = Hasher.hash([rows.identity, *identity, accelerator.device.type, accelerator.mixed_precision])
    keys = [f"{content} {row}" for content, row in zip(rows.contents, rows.rows, strict=True)]
    table = CachedTable(name, identity, keys, made, _FEATURES, trainer.fetch_encoded)
    trainer.policy.eval()
    if not is_sharded:  # otherwise every process misses the same file, and says so
        table.fill(processes.process_index, processes.num_processes)
        processes.wait_for_everyone()
    found = table.whole()
    trainer.policy.train(was_training)
    return found


def _reference_identity(trainer: "DiffusionDPOTrainer") -> str:
    if trainer.ref_denoiser is not None:
        return module_identity(trainer.accelerator.unwrap_model(trainer.ref_denoiser))
    kept = f".{REFERENCE}." if trainer.reference == "initial_adapter" else None
    return _identity_without_lora(trainer, kept)


def _identity_without_lora(trainer: "DiffusionDPOTrainer", kept: str | None = None) -> str:
    return module_identity(trainer.policy, lambda name: "lora_" not in name or bool(kept and kept in name))
