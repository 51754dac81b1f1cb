# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Rows that were encoded before training: tensors as they are kept on disk, looked up, and collated."""

import json
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import datasets
import safetensors.torch
import torch
from torch.nn.utils.rnn import pad_sequence

from .batches import PreferenceRows, RowKey
from .collator import DataCollatorForDiffusionPreference


def pack(value: Any) -> bytes:
    """Nested dictionaries and lists of tensors (and of what JSON has) as the bytes of a safetensors file."""
    tensors: dict[str, torch.Tensor] = {}

    def strip(part):
        if isinstance(part, torch.Tensor):
            name = str(len(tensors))
            tensors[name] = part.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": name}
        if isinstance(part, dict):
            return {"dict": {key: strip(inner) for key, inner in part.items()}}
        return [strip(inner) for inner in part] if isinstance(part, list | tuple) else part

    structure = json.dumps(strip(value))
    return safetensors.torch.save(tensors, {"structure": structure})


def unpack(data: bytes) -> Any:
    """What [`pack`] was given; tuples come back as lists."""
    tensors = safetensors.torch.load(data)
    length = int.from_bytes(data[:8], "little")
    structure = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["structure"])

    def fill(part):
        if isinstance(part, list):
            return [fill(inner) for inner in part]
        if not isinstance(part, dict):
            return part
        return (
            tensors[part["tensor"]] if "tensor" in part else {key: fill(inner) for key, inner in part["dict"].items()}
        )

    return fill(structure)


class EncodedRows(PreferenceRows):
    """
    Rows with what the encoders made of them, looked up by [`RowKey`].

    Args:
        source ([`PreferenceRows`]):
            The rows that were encoded.
        encoded (`datasets.Dataset`):
            For each row and each of its variants, in this order, a column `encoded` of bytes: what [`pack`] makes of the
            output of [`DataCollatorForDiffusionPreference.pair`] with latents in place of pixels.
        variants (`int`):
            Crops and flips of each row: epoch `e` takes number `e % variants`.
        signatures (`Sequence[str]`):
            What rows of one batch must have in common, beside their layout.
        identity (`str`):
            A hash of all that these tables depend on.
        conditions (`datasets.Dataset`, *optional*):
            What each distinct prompt was encoded to, as bytes in a column `encoded`.
        places (`Sequence[int | None]`, *optional*):
            Where in `conditions` the prompt of each row is; `None` where it was encoded with its references and is in the row.
        empty (`int`, *optional*):
            Where in `conditions` the empty prompt is, if prompts are to be dropped.

    Attributes:
        draws (`int`, *optional*):
            How many epochs differ: epoch `e` is epoch `e % draws` again, with its crop, noise and noise level.
        ref_errors (`datasets.Dataset`, *optional*):
            For each row a column `encoded` of bytes: the reference's errors on chosen and rejected in each of its draws, a float
            tensor of shape `(draws, 2, H, W)`.
        shown (`datasets.Dataset`, *optional*):
            For each row a column `encoded` of bytes: how far chosen and rejected show each subject in each of its variants, a
            float tensor of shape `(variants, 2, S)`.
    """

    def __init__(
        self,
        source: PreferenceRows,
        encoded: datasets.Dataset,
        variants: int,
        signatures: Sequence[str],
        identity: str,
        conditions: datasets.Dataset | None = None,
        places: Sequence[int | None] | None = None,
        empty: int | None = None,
    ):
        layouts = [*zip(source.layouts, signatures, strict=True)]
        super().__init__(source.dataset, layouts, source.rows, source.details, source.contents)
        self.source = source
        self.encoded = encoded
        self.variants = variants
        self.identity = identity
        self.conditions = conditions
        self.places = places
        self.empty = empty
        self.draws: int | None = None
        self.ref_errors: datasets.Dataset | None = None
        self.shown: datasets.Dataset | None = None

    @property
    def files(self) -> list[Path]:
        """All files that they are in."""
        tables = (self.encoded, self.conditions, self.ref_errors, self.shown)
        return [Path(file["filename"]) for table in tables if table is not None for file in table.cache_files]

    def picture(self, row: int, epoch: int, collator: DataCollatorForDiffusionPreference) -> torch.Tensor:
        """Chosen and rejected of a row as they were encoded, uint8 of shape `(2, 3, H, W)`, by what batches call `row`."""
        key = RowKey(self.rows.index(row), epoch % self.variants)
        pair = collator.pair(self.source[key])
        return torch.stack([pair["chosen"], pair["rejected"]])

    def __getitem__(self, key: RowKey) -> dict[str, Any]:
        if self.draws is not None:
            key = key._replace(epoch=key.epoch % self.draws)
        row = {
            "encoded": self.encoded[key.row * self.variants + key.epoch % self.variants]["encoded"],
            "key": key._replace(row=self.rows[key.row]),
        }
        if self.conditions is not None and (place := self.places[key.row]) is not None:
            row["conditions"] = self.conditions[place]["encoded"]
            if self.empty is not None:
                row["empty"] = self.conditions[self.empty]["encoded"]
        if self.ref_errors is not None:
            row["ref_errors"] = self.ref_errors[key.row]["encoded"]
        if self.shown is not None:
            row["shown"] = self.shown[key.row]["encoded"]
        return row


@dataclass
class EncodedCollator(DataCollatorForDiffusionPreference):
    """
    Collates encoded rows. As [`DataCollatorForDiffusionPreference`], but `chosen`, `rejected` and `references` are clean
    latents, and `conditions` is what the prompts were encoded to; there are no `prompt_references`. `ref_errors`, where there
    are some, has the shape `(2B, H, W)`, and `shown` the shape `(2B, S)`, the chosen ones first.

    Args:
        stack (`Callable`):
            Joins what single prompts were encoded to: [`Family.stack_prompts`].
    """

    _: KW_ONLY
    stack: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, rows):
        pairs = [self.pair(row) for row in rows]
        batch = {**self.collate(pairs), "conditions": self.stack([pair["conditions"] for pair in pairs])}
        if "ref_errors" in rows[0]:
            errors = [unpack(row["ref_errors"])[row["key"].epoch] for row in rows]
            batch["ref_errors"] = torch.stack(errors, dim=1).flatten(0, 1)
        if "shown" in rows[0]:
            of_variants = [unpack(row["shown"]) for row in rows]
            shown = [found[row["key"].epoch % len(found)].T for found, row in zip(of_variants, rows, strict=True)]
            batch["shown"] = pad_sequence(shown, batch_first=True).permute(2, 0, 1).flatten(0, 1)
        return batch

    def pair(self, row):
        key = row["key"]
        draws = self.draws(key)
        pair = unpack(row["encoded"])
        if "conditions" in row:
            pair["conditions"] = unpack(row["empty" if draws.dropped else "conditions"])
        elif draws.dropped:
            pair["conditions"] = pair["empty"]
        return {
            **pair,
            "prompt": "" if draws.dropped else pair["prompt"],
            "counts": torch.tensor(float(key.counts)),
            "row": key.row,
            "epoch": key.epoch,
            "seed": draws.seed,
        }
