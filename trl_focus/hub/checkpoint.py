# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from .. import __version__
from ..errors import InputError
from .patience import attempt, describe
from .upload import EXCLUDED_OF_CHECKPOINT, part_of


def download_checkpoint(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """
    Fetches the last checkpoint that a run has pushed: `last-checkpoint`, or else the one of the highest step.

    Args:
        repo_id (`str`):
            The run's own repository, `hub_model_id`.
        revision (`str`, *optional*):
            Branch, tag or commit.
        token (`str`, *optional*):
            Token with the right to read.

    Returns:
        `Path`: Its folder in the cache, with all that the Hub has of it.

    Raises:
        ConnectionError: If it can't be fetched whole.
        InputError: If the repository has none.
    """

    def fetch() -> Path | None:
        name, api = repo_id, HfApi(library_name="trl-focus", library_version=__version__, token=token)
        if "/" not in name:
            name = f"{api.whoami()['name']}/{name}"
        info = api.model_info(name, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size for file in info.siblings}
        last = max({part_of(path) for path in sizes} - {"."}, key=_age, default=None)
        if last is None:
            return None
        wanted = [path for path in sizes if part_of(path) == last and Path(path).name not in EXCLUDED_OF_CHECKPOINT]
        # of the very commit that was listed: a run may push meanwhile
        folder = Path(snapshot_download(name, revision=info.sha, allow_patterns=wanted, token=token))
        # without network, the cache's copy is handed out as it is
        if broken := [path for path in wanted if not _has_size(folder / path, sizes[path])]:
            raise ConnectionError(f"{', '.join(broken)} did not arrive whole")
        return folder / last

    try:
        checkpoint = attempt(fetch, f"Fetching the checkpoint from {repo_id}", token=token)
    except Exception as error:  # of httpx or httpx2, by the release of huggingface_hub
        raise ConnectionError(
            f"The checkpoint to resume from can't be fetched from {repo_id} on the Hub: {describe(error, token)} Check "
            "`hub_model_id` and your token (`hf auth whoami`), or resume from a folder."
        ) from None
    if checkpoint is None:
        raise InputError(
            f"{repo_id} has no checkpoint on the Hub{f' at {revision}' if revision else ''}: runs push theirs with "
            "`hub_strategy='checkpoint'` or 'all_checkpoints'."
        )
    return checkpoint


def _age(name: str) -> float:
    step = re.search(r"\d+", name)
    return float("inf") if step is None else int(step[0])


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
