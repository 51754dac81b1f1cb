# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Encoded pairs on the Hub: the files of the cache, in folders named by what they were made with."""

from collections.abc import Callable, Iterable
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError

from ..data.cached_table import cache_folder
from ..data.encoded import EncodedRows
from .patience import attempt


CARD = """\
---
tags:
- trl-focus
viewer: false
---

# Encoded preference pairs

Latents and prompt embeddings of preference pairs, made by `trl-focus prepare`, in folders named by a hash of the model, its
settings and the code that made them. They are found by the content of the pairs, and fit no other model:

```bash
trl-focus train focus --config run.yaml --prepared {repo_id}
```
"""


def push_encoded(parts: Iterable[EncodedRows], repo_id: str, private: bool | None = None) -> CommitInfo:
    """
    Uploads what pairs were encoded to.

    Args:
        parts (`Iterable[EncodedRows]`):
            Encoded rows, those for evaluation among them.
        repo_id (`str`):
            Id of a dataset on the Hub, made if it is not there. What it holds stays.
        private (`bool`, *optional*):
            Whether one that is made is private.
    """
    root, api = cache_folder(), HfApi()
    files = sorted({path.relative_to(root).as_posix() for rows in parts for path in rows.files})
    attempt(
        lambda: api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True), "Making the dataset"
    )
    card = CARD.format(repo_id=repo_id).encode()
    attempt(
        lambda: api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo_id, repo_type="dataset"),
        "Uploading the card",
    )
    return attempt(
        lambda: api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=root,
            allow_patterns=files,
            commit_message="Upload encoded pairs",
        ),
        "Uploading encoded pairs",
    )


def fetcher(repo_id: str, token: str | None = None) -> Callable[[Path], None]:
    """
    A function that downloads a file of the cache to its place, if the dataset has it.

    Raises:
        ValueError: If there is no such dataset.
    """
    try:
        files = {*attempt(lambda: HfApi(token=token).list_repo_files(repo_id, repo_type="dataset"), "Listing files")}
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"`prepared` names {repo_id!r}, and there is no such dataset on the Hub, or none that you may read. Make it with "
            "`trl-focus prepare --push_to`, or leave `prepared` out."
        ) from error

    def fetch(path: Path):
        name = path.relative_to(cache_folder()).as_posix()
        if name in files:
            attempt(
                lambda: hf_hub_download(repo_id, name, repo_type="dataset", local_dir=cache_folder(), token=token),
                f"Downloading {name}",
            )

    return fetch
