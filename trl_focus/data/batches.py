# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Batches of one layout. Denoisers take one target size and one set of reference sizes a call, so rows are batched with
rows of their own layout: nothing is cropped to fit, left-over rows form smaller batches, and every process takes the
same number of steps.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch.utils.data import get_worker_info

from .layout import Layout


MAX_WAITING = 64  # batches' worth of rows that a stream holds back for others of their layout


class RowKey(NamedTuple):
    """
    Identity of a row in a batch: it seeds the row's noise, level, crop, flip and caption drop, whatever batch or process
    the row is in. A row that does not count fills up a process that would otherwise run out of batches first.
    """

    row: int
    epoch: int = 0
    counts: bool = True


def fill_up(batches: list[list[RowKey]], world_size: int) -> list[list[RowKey]]:
    """Appends batches that do not count until every one of `world_size` processes has as many."""
    missing = -len(batches) % world_size
    return batches + [[batches[0][0]._replace(counts=False)] for _ in range(missing)]


class LayoutBatchSampler:
    """
    Yields, for one process, the batches of an epoch as lists of [`RowKey`].

    Args:
        layouts (`Sequence[Hashable]`):
            Layout of each row.
        batch_size (`int`):
            Rows in a full batch.
        rank, world_size (`int`):
            This process, and how many there are: batch `i` goes to process `i % world_size`.
        shuffle (`bool`):
            Whether each epoch has its own order of rows and batches.
        seed (`int`):
            Seed of that order.
        drop_last (`bool`):
            Whether to leave out batches that are not full.
    """

    def __init__(
        self,
        layouts: Sequence[Hashable],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ):
        groups = defaultdict(list)
        for row, layout in enumerate(layouts):
            groups[layout].append(row)
        self.groups = list(groups.values())
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        # `set_epoch` of accelerate's loaders looks for it on the batch sampler's `sampler`, also where a resumed run wraps
        # the batch sampler to skip batches.
        self.sampler = self

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        per_group = (len(rows) / self.batch_size for rows in self.groups)
        n_batches = sum(math.floor(n) if self.drop_last else math.ceil(n) for n in per_group)
        return math.ceil(n_batches / self.world_size)

    def __iter__(self) -> Iterator[list[RowKey]]:
        rng = np.random.default_rng([self.seed, self.epoch]) if self.shuffle else None
        batches = []
        for rows in self.groups:
            rows = rng.permutation(rows).tolist() if rng else rows
            keys = [RowKey(row, self.epoch) for row in rows]
            batches += [keys[start : start + self.batch_size] for start in range(0, len(keys), self.batch_size)]
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        if rng:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        yield from fill_up(batches, self.world_size)[self.rank :: self.world_size]


class PreferenceRows(torch.utils.data.Dataset):
    """
    Rows of a map-style dataset with their layouts, looked up by [`RowKey`].

    Args:
        dataset (`datasets.Dataset`):
            Checked rows of the preference schema.
        layouts (`list[Layout]`):
            Layout of each row.
        rows (`list[int]`, *optional*):
            What each row is called, in messages and in its seed: its index in the dataset as the user gave it, where ties
            were dropped since. Defaults to its index here.
        details (`datasets.Dataset`, *optional*):
            Further columns of the same rows.
        contents (`list[str]`, *optional*):
            A digest of each row.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        layouts: list[Layout],
        rows: list[int] | None = None,
        details: datasets.Dataset | None = None,
        contents: list[str] | None = None,
    ):
        self.dataset = dataset
        self.layouts = layouts
        self.rows = rows or range(len(dataset))
        self.details = details
        self.contents = contents

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: RowKey) -> dict[str, Any]:
        details = {} if self.details is None else self.details[key.row]
        return {**self.dataset[key.row], **details, "key": key._replace(row=self.rows[key.row])}


class PreferenceStream(torch.utils.data.IterableDataset):
    """
    Batches of one layout, as lists of rows, out of a streamed dataset.

    Every process reads the whole stream and takes its own batches of it, so all take the same number of steps. Where
    layouts are many, the oldest rows stop waiting for others of theirs and form a smaller batch.

    Args:
        dataset (`datasets.IterableDataset`):
            Rows of the preference schema.
        inspect (`Callable`):
            Takes (row, number) and returns the row's [`Layout`], or `None` to leave the row out; raises on a bad row.
        batch_size, rank, world_size (`int`), drop_last (`bool`):
            As in [`LayoutBatchSampler`].
        details (`Callable`, *optional*):
            Takes a row and returns further columns of it.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        inspect: Callable[[dict[str, Any], int], Layout | None],
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        details: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ):
        self.dataset = dataset
        self.inspect = inspect
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last
        self.details = details
        self._epoch = torch.tensor(0).share_memory_()  # workers that outlive an epoch see it change

    @property
    def epoch(self) -> int:
        return self._epoch.item()

    def set_epoch(self, epoch: int):
        self._epoch.fill_(epoch)
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        waiting: dict[Layout, list[RowKey]] = defaultdict(list)
        rows: dict[RowKey, dict[str, Any]] = {}
        ready: list[list[RowKey]] = []

        def share() -> Iterator[list[dict[str, Any]]]:
            mine = ready[self.rank]
            given = [rows[key._replace(counts=True)] for key in mine]
            details = [self.details(row) if self.details else {} for row in given]
            yield [{**row, **more, "key": key} for row, more, key in zip(given, details, mine, strict=True)]
            for key in {key._replace(counts=True) for batch in ready for key in batch}:
                del rows[key]
            ready.clear()

        for number, row in enumerate(self.dataset):
            key = RowKey(first + number * stride, self.epoch)
            layout = self.inspect(row, key.row)
            if layout is None:
                continue
            rows[key] = row
            waiting[layout].append(key)
            if len(waiting[layout]) == self.batch_size:
                ready.append(waiting.pop(layout))
            elif len(rows) > MAX_WAITING * self.batch_size * self.world_size:
                ready.append(waiting.pop(next(iter(waiting))))
            if len(ready) == self.world_size:
                yield from share()
        for batch in [] if self.drop_last else waiting.values():
            ready.append(batch)
            if len(ready) == self.world_size:
                yield from share()
        if ready:
            ready[:] = fill_up(ready, self.world_size)
            yield from share()
