# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Prompts, images and references through the text encoders and the VAE, once for all steps, into files of `datasets`."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import diffusers
import torch
import transformers
from accelerate import PartialState
from datasets.fingerprint import Hasher

from ..data.batches import PreferenceRows, RowKey
from ..data.cached_table import CachedTable
from ..data.collator import DataCollatorForDiffusionPreference
from ..data.encoded import EncodedRows, pack
from ..data.layout import LayoutRule
from ..families import Family
from ..families.base import ReferenceRule


_OF_A_DRAW = ("counts", "row", "epoch", "seed", "prompt_references")
_FEATURES = datasets.Features({"encoded": datasets.Value("large_binary"), "signature": datasets.Value("string")})


@torch.no_grad()
def encode_row(family: Family, collator: DataCollatorForDiffusionPreference, row: dict[str, Any]) -> dict[str, Any]:
    """
    A row as [`DataCollatorForDiffusionPreference.pair`] makes it, with latents in place of pixels. Where the prompt's encoder
    looks at the references, `conditions` is what it makes of the prompt, and `empty` of an empty one, if prompts are dropped.

    Raises:
        FloatingPointError: If a latent is not finite, as where a VAE overflows in float16.
    """
    pair = collator.pair(row)
    chosen, rejected = family.encode_pixels(torch.stack([pair["chosen"], pair["rejected"]]))
    references = [family.encode_pixels(pixels_CHW[None])[0] for pixels_CHW in pair["references"]]
    if not all(latents.isfinite().all() for latents in (chosen, rejected, *references)):
        raise FloatingPointError(
            f"Row {pair['row']}: the VAE gave latents that are not finite. Load the pipeline in bfloat16 or float32."
        )
    kept = {name: value for name, value in pair.items() if name not in _OF_A_DRAW}
    if seen := pair["prompt_references"]:
        kept["conditions"] = family.encode_prompt([row["prompt"]], [seen])
        if collator.caption_dropout:
            kept["empty"] = family.encode_prompt([""], [seen])
    return {**kept, "prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "references": references}


def encode_once(
    rows: PreferenceRows,
    family: Family,
    encoders: str,
    collator: DataCollatorForDiffusionPreference,
    variants: int,
    processes: PartialState,
    fetch: Callable[[Path], None] | None = None,
) -> EncodedRows:
    """
    Encodes rows before training, into files in the cache of `datasets` that later runs find again: what has the same
    content, encoders, settings and code is not encoded twice.

    Args:
        rows ([`PreferenceRows`]):
            Checked pairs.
        family ([`Family`]):
            Its encoders must be where they are to work.
        encoders (`str`):
            What [`encoder_identity`] says of them.
        collator ([`DataCollatorForDiffusionPreference`]):
            Says how images are sized, cropped and flipped.
        variants (`int`):
            Crops and flips of each row, where these are random.
        processes (`PartialState`):
            Share the files out.
        fetch (`Callable`, *optional*):
            Takes the path of a file that is not there, and may put it there.

    Raises:
        FloatingPointError: If a latent is not finite.
        ValueError: If prompts are to be dropped, and an empty one can't stand in a batch with the others.
    """
    is_random = collator.crop == "random" or collator.random_flip
    variants = variants if is_random else 1
    seeing = _sees_references(collator.layout_rule)
    prompts = [
        None if seeing and layout.reference_sizes else prompt
        for layout, prompt in zip(rows.layouts, rows.dataset["prompt"], strict=True)
    ]
    texts = [*dict.fromkeys(prompt for prompt in prompts if prompt is not None)]
    if texts and collator.caption_dropout:
        texts = ["", *texts]

    def row_at(index: int) -> dict[str, Any]:
        row, variant = divmod(index, variants)
        value = encode_row(family, collator, rows[RowKey(row, variant)])
        return {"encoded": pack(value), "signature": _signature(family, value.get("conditions", {}))}

    @torch.no_grad()
    def prompt_at(index: int) -> dict[str, Any]:
        value = family.encode_prompt([texts[index]])
        return {"encoded": pack(value), "signature": _signature(family, value)}

    identity = Hasher.hash([encoders, _collator_identity(collator), variants, rows.details is not None])
    keys = [f"{content} {row if is_random else ''}" for content, row in zip(rows.contents, rows.rows, strict=True)]
    pairs = CachedTable("pairs", identity, [key for key in keys for _ in range(variants)], row_at, _FEATURES, fetch)
    conditions = CachedTable("prompts", encoders, texts, prompt_at, _FEATURES, fetch)
    tables = [pairs, conditions] if texts else [pairs]
    for table in tables:
        table.fill(processes.process_index, processes.num_processes)
    processes.wait_for_everyone()

    encoded = pairs.whole()
    signatures = encoded.select_columns("signature")[::variants]["signature"]
    if not texts:
        return EncodedRows(rows, encoded, variants, signatures, identity)
    of_text = dict(zip(texts, conditions.whole()["signature"], strict=True))
    signatures = [
        signature if prompt is None else of_text[prompt] for signature, prompt in zip(signatures, prompts, strict=True)
    ]
    place = {text: i for i, text in enumerate(texts)}
    if collator.caption_dropout and len({*of_text.values()}) > 1:
        raise ValueError(
            "`caption_dropout` empties prompts, and this model makes an empty one, or these, of several lengths. Set "
            "`encode_once=False`, or `caption_dropout=0`."
        )
    empty = place[""] if collator.caption_dropout else None
    return EncodedRows(
        rows, encoded, variants, signatures, identity, conditions.whole(), [*map(place.get, prompts)], empty
    )


def _sees_references(rule: LayoutRule) -> bool:
    """Whether the prompt's encoder looks at references."""
    return rule.references is not None and (
        type(rule.references).prepare_for_prompt is not ReferenceRule.prepare_for_prompt
    )


def _signature(family: Family, conditions: Mapping[str, Any]) -> str:
    """What prompts of one batch must have in common."""
    if family.pads_prompts:
        return ""
    return str({name: tuple(value.shape[1:]) for name, value in conditions.items() if isinstance(value, torch.Tensor)})


# ---- What a file is made of ----


def module_identity(module: torch.nn.Module, counts: Callable[[str], bool] = lambda name: True) -> str:
    """A hash of a module's class, settings, dtype and weights, of those weights whose names count."""
    hasher, config = Hasher(), module.config
    settings = config if isinstance(config, dict) else config.to_dict()
    # What begins with _ says where it came from, and which settings are defaults, in no order
    settings = sorted((name, str(value)) for name, value in settings.items() if not name.startswith("_"))
    hasher.update((type(module).__name__, str(module.dtype), settings))
    for name, value in module.state_dict().items():
        if not counts(name):
            continue
        if isinstance(value, torch.Tensor):  # a tensor itself would be printed to be hashed, which takes far longer
            content = value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            value = str(value.dtype), tuple(value.shape), content
        hasher.update((name, value))
    return hasher.hexdigest()


def encoder_identity(family: Family) -> str:
    """A hash of what latents and conditions depend on beside the data: encoders, their settings, and code."""
    parts = [
        [*saved(part)]
        for name, part in sorted(family.pipeline.components.items())
        if hasattr(part, "save_pretrained") and not isinstance(part, torch.nn.Module) and "scheduler" not in name
    ]
    settings = type(family).__name__, family.encode_prompt_kwargs
    code = code_of("families/*.py", "data/*.py", "trainer/encoding.py", "noise.py")
    versions = code, diffusers.__version__, transformers.__version__
    return Hasher.hash([[module_identity(module) for module in family.encoders], parts, settings, versions])


def saved(part) -> Iterator[tuple[str, bytes]]:
    """What a tokenizer, a processor or a scheduler saves, less what its last call left behind."""
    with tempfile.TemporaryDirectory() as folder:
        part.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.name == "tokenizer.json":
                yield (
                    path.name,
                    json.dumps({**json.loads(path.read_text()), "truncation": None, "padding": None}).encode(),
                )
            elif path.is_file():
                yield path.name, path.read_bytes()


@cache
def code_of(*patterns: str) -> str:
    """A hash of the package's sources that match one of the patterns."""
    root = Path(__file__).parent.parent
    return Hasher.hash([path.read_bytes() for pattern in patterns for path in sorted(root.glob(pattern))])


def _collator_identity(collator: DataCollatorForDiffusionPreference) -> str:
    """A hash of what is done to images."""
    rule = collator.layout_rule
    sizing = [
        value for value in getattr(rule.references, "__dict__", {}).values() if isinstance(value, int | float | str)
    ]
    is_random = collator.crop == "random" or collator.random_flip
    return Hasher.hash(
        [
            *(rule.resolution, rule.multiple, rule.stretch, collator.crop, collator.cell_size, sizing),
            _sees_references(rule) and collator.caption_dropout > 0,
            (collator.seed, collator.random_flip) if is_random else None,
        ]
    )
