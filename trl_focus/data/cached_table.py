# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
from datasets.fingerprint import Hasher


@dataclass
class CachedTable:
    """
    A table that is made once, into files in the cache of `datasets`, and found again by what it is made of. A row is written
    as it is made, and a file is there once it is whole.

    Args:
        name (`str`):
            What its rows are.
        identity (`str`):
            A hash of all that every row depends on.
        keys (`Sequence[str]`):
            What each row depends on beside that.
        make (`Callable`):
            Takes a row's number and returns its columns.
        features (`datasets.Features`):
            The columns.
    """

    ROWS_PER_FILE: ClassVar[int] = 256  # what a run that is broken off loses at most

    name: str
    identity: str
    keys: Sequence[str]
    make: Callable[[int], dict[str, Any]]
    features: datasets.Features

    @property
    def folder(self) -> Path:
        """Where its files are, and those of other data under the same settings."""
        return Path(datasets.config.HF_DATASETS_CACHE) / "trl-focus" / self.identity

    def file(self, start: int) -> datasets.Dataset:
        """Rows from `start`, as many as a file holds."""
        keys = self.keys[start : start + self.ROWS_PER_FILE]
        fingerprint = Hasher.hash([self.identity, *keys])
        self.folder.mkdir(parents=True, exist_ok=True)
        return datasets.Dataset.from_dict({"index": range(start, start + len(keys))}).map(
            self.make,
            input_columns="index",
            remove_columns="index",
            features=self.features,
            cache_file_name=str(self.folder / f"{self.name}-{fingerprint}.arrow"),
            new_fingerprint=fingerprint,
            load_from_cache_file=True,
            writer_batch_size=1,  # a row may have many MB
            desc=f"Encoding {self.name}",
        )

    def fill(self, rank: int, world_size: int):
        """Makes every `world_size`-th file, from number `rank` on."""
        for start in range(rank * self.ROWS_PER_FILE, len(self.keys), world_size * self.ROWS_PER_FILE):
            self.file(start)

    def whole(self) -> datasets.Dataset:
        """All rows. What is not there, as what another node made on a disk of its own, is made."""
        return datasets.concatenate_datasets(
            [self.file(start) for start in range(0, len(self.keys), self.ROWS_PER_FILE)]
        )
