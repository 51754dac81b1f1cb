# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Predictions beside measurements, on models small enough for any machine. Each function returns pairs (predicted, measured) by
what they are of.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import bitsandbytes
import datasets
import torch
from peft import LoraConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from tests.fixtures.families import denoiser_inputs, family_of
from tests.fixtures.pairs import make_pairs
from tests.fixtures.trainers import make_trainer
from trl_focus.trainer.policy import make_policy

from .cache import cache
from .live import live_bytes
from .memory import Sizes, activation_bytes, kept_bytes, optimizer_bytes, sizes, weight_bytes
from .models import MODELS
from .operations import backward_flops, forward_flops, recomputed_flops
from .trace import trace


Pairs = dict[str, tuple[int, int]]


def counted_flops(call: Callable[[], torch.Tensor], backward: bool = False) -> int:
    """Operations of a call, or of it and its backward pass, as torch counts them. It does so for attention made of products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = call()
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


def step_of(family: str) -> Pairs:
    """A forward and a backward pass of the tiny pipeline of a family, with LoRA, prompts and references."""
    family_, name = family_of(family), family
    inputs = denoiser_inputs(family_, name)
    lora = LoraConfig(r=4, init_lora_weights="gaussian", target_modules=family_.lora_target_modules)
    policy, _ = make_policy(family_.pipeline, family_.denoiser, lora, lora)

    def call() -> torch.Tensor:
        return family_.predict(policy, *tree_map(torch.clone, inputs))

    kept, peak = live_bytes(call)
    forward, both = counted_flops(call), counted_flops(call, backward=True)
    with policy.disable_adapter(), torch.no_grad():
        reference = counted_flops(call)
    policy.activation_checkpointing_enable()
    checkpointed = counted_flops(call, backward=True)
    kept_checkpointed, peak_checkpointed = live_bytes(call)
    seen = trace(policy, {}, call=call)
    return {
        "forward": (forward_flops(seen), forward),
        "reference": (forward_flops(seen, lora=False), reference),
        "backward": (backward_flops(seen, scores_again=False), both - forward),
        "recomputed": (recomputed_flops(seen), checkpointed - both),
        "kept": (kept_bytes(seen, checkpointing=False), kept),
        "kept, checkpointing": (kept_bytes(seen), kept_checkpointed),
        "at most": (activation_bytes(seen, checkpointing=False), peak),
        "at most, checkpointing": (activation_bytes(seen), peak_checkpointed),
    }


def optimizer_states(folder: Path) -> Pairs:
    """LoRA and optimizer of a trainer after a step: AdamW, and bitsandbytes' in 8 bit."""
    found = {}
    for optim, eight_bit in (("adamw_torch", False), ("adamw_bnb_8bit", True)):
        lora = LoraConfig(r=128, target_modules=["to_q", "to_qkv_mlp_proj"])
        trainer = make_trainer(output_dir=folder / optim, optim=optim, max_steps=1, peft_config=lora)
        trainer.train()
        counted = sizes(trainer.accelerator.unwrap_model(trainer.model))
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        states = [
            value
            for state in optimizer.state.values()
            for name, value in state.items()
            if isinstance(value, torch.Tensor) and value.ndim and not name.startswith("qmap")  # one table for all
        ]
        measured = sum(value.numel() * value.element_size() for value in states)
        found[optim] = (optimizer_bytes(counted, eight_bit), measured)
        trained = [weight for group in optimizer.param_groups for weight in group["params"]]
        found["LoRA"] = (4 * sum(counted.lora), sum(weight.numel() * weight.element_size() for weight in trained))
    return found


def quantized_weights(rows: int = 384, columns: int = 192) -> Pairs:
    """A linear layer as bitsandbytes stores it."""
    one = Sizes(linear=[(rows, columns)], other=0, lora=[])
    weight = torch.randn(rows, columns)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
    codes, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.half())
    return {
        "nf4": (weight_bytes(one, "nf4"), packed.numel() + state.absmax.numel() * state.absmax.element_size()),
        "int8": (weight_bytes(one, "int8"), codes.numel() + scales.numel() * scales.element_size()),
    }


def cache_files(folder: Path, pairs: int = 4) -> Pairs:
    """The files in which a trainer keeps what it computed before training, of a tiny FLUX.2 klein in fp32."""
    with patch.object(datasets.config, "HF_DATASETS_CACHE", folder / "cache"):
        trainer = make_trainer(
            output_dir=folder / "cached",
            resolution=256,
            precompute_ref_errors=2,
            train_dataset=make_pairs(pairs, size=(256, 256), n_references=2),
        )
        trainer.get_train_dataloader()
    tiny = replace(MODELS["FLUX.2 klein 4B"], channels=16, prompt=(64, 48))
    expected = cache(tiny, [256, 64, 64], draws=2, subjects=2, bytes_each=4)
    of_table = {
        "pairs": expected.images + expected.references + expected.masks,
        "prompts": expected.prompt,
        "errors": expected.errors,
    }
    return {
        name: (pairs * count, sum(path.stat().st_size for path in (folder / "cache").rglob(f"{name}-*.arrow")))
        for name, count in of_table.items()
    }
