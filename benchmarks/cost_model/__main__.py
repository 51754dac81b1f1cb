# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Prints the tables of `docs/scaling.md`; simulating the steps of all models takes some minutes."""

import sys
import tempfile
from contextlib import redirect_stdout
from functools import cache as once
from pathlib import Path

from .cache import cache
from .cluster import H100, PCIE, bounds, sent_bytes
from .measure import cache_files, optimizer_states, quantized_weights, step_of
from .memory import kept_bytes, memory, offload, optimizer_bytes, sizes
from .models import MODELS, Model, on_meta, peak_of_policy, policy_on_meta, trace_policy
from .operations import step


RESOLUTION, REFERENCES = 1024, 2
EFFICIENCY = 0.4  # of a card's peak; assumed where the tables speak of days
PAIRS = (10**3, 10**4, 10**5, 10**6, 10**7, 10**8)
CARD_COUNTS = (1, 8, 64, 256)
PREPARED = {"images_cached": True, "prompts_cached": True}
TINY = ("flux2_klein", "kontext", "qwen_image_edit_plus", "sd3", "sdxl", "z_image")


def sides(model: Model) -> list[int]:
    return [RESOLUTION] * (1 + REFERENCES * model.references)


traced = once(lambda name: trace_policy(MODELS[name], sides(MODELS[name])))
counted = once(lambda name: sizes(policy_on_meta(MODELS[name])))
peak = once(lambda name, images: peak_of_policy(MODELS[name], sides(MODELS[name]), batch=images))
worked = once(lambda name: step(MODELS[name], sides(MODELS[name]), traced(name)))


def table(title: str, *columns: str):
    print(f"\n### {title}\n")
    row(*columns)
    row(*["---"] * len(columns))


def row(*cells):
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def amount(count: float, unit: str = "B") -> str:
    """A number with three digits and a prefix."""
    prefixes = iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while count >= 1000:
        count, prefix = count / 1000, next(prefixes)
    return f"{count:.3g} {prefix}{unit}"


def models():
    table(
        "Models",
        "model",
        "weights",
        "LoRA, rank 16",
        "text encoders",
        "tokens of target and references",
        "of the prompt",
    )
    for name, model in MODELS.items():
        readers = sum(weight.numel() for build in model.text_encoders for weight in on_meta(build).parameters())
        row(
            name,
            amount(counted(name).frozen, ""),
            amount(sum(counted(name).lora), ""),
            amount(readers, ""),
            model.tokens(sides(model)),
            model.prompt[0],
        )


def operations():
    table(
        "Operations of a step of one pair, in TFLOP",
        *("model", "policy", "reference", "backward", "checkpointing", "encoding images", "encoding the prompt"),
    )
    for name in MODELS:
        work = worked(name)
        parts = work.policy, work.reference, work.backward, work.recomputed, work.images, work.prompt
        row(name, *(f"{part / 1e12:.1f}" for part in parts))

    table(
        "How many times faster a step can become, by operations",
        *("model", "cached", "cached, reference precomputed", "the same with checkpointing: cached", "precomputed"),
    )
    for name in MODELS:
        work, cells = worked(name), []
        for checkpointing in (False, True):
            whole = work.total(checkpointing)
            cells += [
                whole / work.total(checkpointing, **PREPARED, reference_precomputed=done) for done in (False, True)
            ]
        row(name, *(f"{cell:.2f}" for cell in cells))


def on_a_card():
    table(
        "Memory of a step of one pair on one card",
        *(
            "model",
            "weights bf16",
            "int8",
            "NF4",
            "LoRA, gradients, AdamW",
            "activations",
            "with checkpointing",
            "all, NF4",
        ),
    )
    for name in MODELS:
        stored = {storage: memory(counted(name), traced(name), storage) for storage in ("bf16", "int8", "nf4")}
        nf4 = stored["nf4"]
        row(
            name,
            *(amount(taken.weights) for taken in stored.values()),
            amount(nf4.lora),
            amount(kept_bytes(traced(name), checkpointing=False)),
            amount(peak(name, 2)),
            amount(nf4.weights + nf4.lora + nf4.buffers + peak(name, 2)),
        )


def with_offload():
    table(
        "Memory of a step of one pair on one card with `offload_blocks`, in bf16 with checkpointing",
        *("model", "weights on the card", "in host memory", "all on the card", "with `one_forward: false`"),
        *("sent a step", "seconds by PCIe", "sent with `one_forward: false`", "seconds by PCIe"),
    )
    for name, model in MODELS.items():
        at_rest, lora = offload(policy_on_meta(model)), 8 * sum(counted(name).lora) + optimizer_bytes(counted(name))
        cells = [amount(at_rest.card), amount(at_rest.host)]
        cells += [amount(at_rest.card + lora + peak(name, images)) for images in (2, 1)]
        for passes in (3, 7):  # reference, forward and backward; or each image alone, and the first forward again
            cells += [amount(passes * at_rest.sent), f"{passes * at_rest.sent / PCIE:.2g}"]
        row(name, *cells)


def on_many_cards():
    layouts = {"DDP": ("ddp", False), "FSDP2": ("fsdp2", False), "FSDP2, reference precomputed": ("fsdp2", True)}
    table(
        "Least seconds of a step of one pair a card on H100, and those of the network alone",
        *("model", "cards"),
        *(column for layout in layouts for column in (layout, "network")),
    )
    for name in MODELS:
        for cards in CARD_COUNTS:
            cells = []
            for layout, precomputed in layouts.values():
                flops = worked(name).total(**PREPARED, reference_precomputed=precomputed)
                passes = 4 if precomputed else 5  # forward, recomputed, backward (2), and the reference's
                sent = sent_bytes(counted(name), cards, layout, reference_precomputed=precomputed)
                bound = bounds(H100, cards, flops, passes, traced(name), sent)
                cells += [f"{bound.seconds:.3f} {bound.by}", f"{bound.network:.4f}"]
            row(name if cards == CARD_COUNTS[0] else "", cards, *cells)


def epochs():
    table(
        f"Days for one epoch on H100 at {EFFICIENCY:.0%} of their peak",
        *("model", "cards", *(f"{count:.0e} pairs" for count in PAIRS)),
    )
    for name in ("SDXL", "FLUX.2 klein 4B", "FLUX.2 dev"):
        seconds = worked(name).total(**PREPARED) / H100.flops / EFFICIENCY
        for cards in CARD_COUNTS:
            days = (count / cards * seconds / 86400 for count in PAIRS)
            row(
                name if cards == CARD_COUNTS[0] else "",
                cards,
                *(f"{day:.2g}" if day < 100 else f"{day:.0f}" for day in days),
            )


def on_disk():
    table(
        "Cache of one pair, and of many",
        *(
            "model",
            "chosen and rejected",
            "references",
            "prompt",
            "masks of 2 subjects",
            "reference's errors, 4 draws",
        ),
        *(f"{count:.0e} pairs" for count in PAIRS[::2]),
        "1e+08 without prompts",
    )
    for name, model in MODELS.items():
        kept = cache(model, sides(model), draws=4, subjects=2 * model.references)
        parts = kept.images, kept.references, kept.prompt, kept.masks, kept.errors
        totals = [amount(count * kept.total) for count in PAIRS[::2]]
        row(name, *map(amount, parts), *totals, amount(10**8 * (kept.total - kept.prompt)))


def held():
    steps = {name: step_of(name) for name in TINY}
    table("Predicted over measured: a step of tiny models on the CPU", "model", *steps[TINY[0]])
    for name, pairs in steps.items():
        row(name, *(f"{predicted / measured:.3f}" for predicted, measured in pairs.values()))
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):  # trainers say how they get on
        found = {
            "LoRA and optimizer of a trainer": optimizer_states(Path(folder)),
            "linear layer, quantized": quantized_weights(),
            "files of 4 pairs": cache_files(Path(folder)),
        }
    table("Predicted beside measured: bytes", "of", "what", "predicted", "measured")
    for of, pairs in found.items():
        for what, (predicted, measured) in pairs.items():
            row(of, what, predicted, measured)


if __name__ == "__main__":
    for print_tables in (models, operations, on_a_card, with_offload, on_many_cards, epochs, on_disk, held):
        print_tables()
