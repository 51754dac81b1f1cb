# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets


@dataclass
class CachedTable:
    """
    A table that is made once, into files in the cache of `datasets`, and found again by what it is made of. A row is written
    as it is made, and a file is there once it is whole.

    Args:
        name (`str`):
            What its rows are.
        identity (`str`):
            A hash of all that its rows depend on.
        length (`int`):
            Number of rows.
        make (`Callable`):
            Takes a row's number and returns its columns.
        features (`datasets.Features`):
            The columns.
    """

    ROWS_PER_FILE: ClassVar[int] = 256  # what a run that is broken off loses at most

    name: str
    identity: str
    length: int
    make: Callable[[int], dict[str, Any]]
    features: datasets.Features

    def file(self, start: int) -> datasets.Dataset:
        """Rows from `start`, as many as a file holds."""
        stop = min(start + self.ROWS_PER_FILE, self.length)
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "trl-focus" / self.identity
        folder.mkdir(parents=True, exist_ok=True)
        return datasets.Dataset.from_dict({"index": range(start, stop)}).map(
            self.make,
            input_columns="index",
            remove_columns="index",
            features=self.features,
            cache_file_name=str(folder / f"{self.name}-{start:09d}-{stop:09d}.arrow"),
            new_fingerprint=f"{self.identity}-{start}",
            load_from_cache_file=True,
            writer_batch_size=1,  # a row may have many MB
            desc=f"Encoding {self.name}",
        )

    def fill(self, rank: int, world_size: int):
        """Makes every `world_size`-th file, from number `rank` on."""
        for start in range(rank * self.ROWS_PER_FILE, self.length, world_size * self.ROWS_PER_FILE):
            self.file(start)

    def whole(self) -> datasets.Dataset:
        """All rows. What is not there, as what another node made on a disk of its own, is made."""
        return datasets.concatenate_datasets([self.file(start) for start in range(0, self.length, self.ROWS_PER_FILE)])
