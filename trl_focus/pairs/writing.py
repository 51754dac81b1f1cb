# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Pairs of a whole data set, in blocks of rows: one Parquet file each, so that a run that was stopped goes on where it was."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from datasets.table import embed_table_storage
from pyarrow import parquet
from tqdm.auto import tqdm

from ..data.rows import reference_subject_indices, subject_names
from ..data.schema import COLUMNS
from ..evaluation.files import write_whole
from .makers import Maker, NoPairError
from .rows import PAIR_FEATURES, check_pair, check_source, item_of


PAIRS, BLOCKS = "pairs", "blocks"  # folders: of Parquet files alone, which is the data set, and of what was said


class Made(NamedTuple):
    """
    Attributes:
        pairs (`int`):
            Number of pairs.
        without (`list[tuple[int, str]]`):
            Good rows of which no pair came, and why.
        problems (`list[tuple[int, str]]`):
            Rows that could not be used, and why.
    """

    pairs: int
    without: list[tuple[int, str]]
    problems: list[tuple[int, str]]


def _row(
    source: Mapping[str, Any], number: int, kind: str, make: Maker, seed: int, about: Mapping[str, Any]
) -> dict[str, Any]:
    """
    The row of a pair.

    Raises:
        NoPairError: If none comes of it.
        ValueError: If the source can't be used, or training would refuse the pair.
    """
    check_source(source)
    item = item_of(source, number)
    made = make(source, item, seed)
    known = {name: source.get(name) for name in COLUMNS}
    pair = {
        **known,
        **made,
        "subjects": subject_names(source),  # none where nobody gave some: a number is nothing to search for
        "reference_subjects": reference_subject_indices(source),
        "source_row": number,
        "kind": kind,
        "provenance": json.dumps({**about, **made["provenance"]}, ensure_ascii=False),
    }
    check_pair(pair)
    return pair


def make_pairs(
    dataset: datasets.Dataset,
    kind: str,
    make: Maker,
    output_dir: str | Path,
    seed: int = 0,
    seeds_per_row: int = 1,
    block_size: int = 32,
    part: tuple[int, int] = (0, 1),
    about: Mapping[str, Any] | None = None,
) -> Made:
    """
    Makes pairs of the rows of a data set, and writes them to `<output_dir>/pairs`, which training and
    [`~data.load_preferences`] read. Blocks that are there are not made again.

    Args:
        dataset (`datasets.Dataset`):
            Rows with `prompt` and `references`, and what else the way of making them needs.
        kind (`str`):
            Name of that way, for the column `kind`.
        make (`Maker`):
            That way.
        output_dir (`str` or `Path`):
            Where to.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the first row.
        seeds_per_row (`int`, *optional*, defaults to `1`):
            How many seeds a row takes: row i begins with `seed + i * seeds_per_row`, whoever makes it.
        block_size (`int`, *optional*, defaults to `32`):
            Rows in a block: what is lost at most when a run is stopped.
        part (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
            Number of this process and number of processes, each of which makes its share of the blocks.
        about (`Mapping[str, Any]`, *optional*):
            What the column `provenance` says of all pairs, besides scores and seeds.

    Returns:
        [`Made`]: What became of the rows of this part, also of those that were there.
    """
    output_dir = Path(output_dir)
    for name in (PAIRS, BLOCKS):
        (output_dir / name).mkdir(parents=True, exist_ok=True)
    # Of what training reads, in Arrow's format: an image that can't be decoded is its row's problem
    columns = [name for name in COLUMNS if name in dataset.column_names]
    rows = dataset.select_columns(columns).with_format("arrow")
    pairs, without, problems = 0, [], []
    blocks = range(part[0], (len(dataset) + block_size - 1) // block_size, part[1])
    for block in tqdm(blocks, desc=f"pairs, {kind}", disable=None):
        said = output_dir / BLOCKS / f"{block:06d}.json"
        if not said.exists():
            found = {"pairs": 0, "without": [], "problems": []}
            made = []
            for number in range(block * block_size, min((block + 1) * block_size, len(dataset))):
                source = rows[number : number + 1].to_pylist()[0]
                try:
                    made.append(_row(source, number, kind, make, seed + number * seeds_per_row, about or {}))
                except NoPairError as error:
                    found["without"].append([number, str(error)])
                except ValueError as error:
                    found["problems"].append([number, str(error)])
            found["pairs"] = len(made)
            if made:
                _write_pairs(made, output_dir / PAIRS / f"train-{block:06d}.parquet")
            write_whole(said, json.dumps(found, ensure_ascii=False))  # last: what it tells is there
        found = json.loads(said.read_text(encoding="utf-8"))
        pairs += found["pairs"]
        without += map(tuple, found["without"])
        problems += map(tuple, found["problems"])
    return Made(pairs, without, problems)


def _write_pairs(rows: list[dict[str, Any]], path: Path):
    rows = [{name: row.get(name) for name in PAIR_FEATURES} for row in rows]
    unfinished = path.with_suffix(".part")
    table = datasets.Dataset.from_list(rows, features=PAIR_FEATURES).data.table
    parquet.write_table(embed_table_storage(table), unfinished)  # with images whose rows name no more than their files
    os.replace(unfinished, path)
