# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import os
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from transformers.utils import logging


logger = logging.get_logger(__name__)

TIMEOUT = 3  # seconds that a card waits for the Hub


def base_model(name: str | None, folder: Path | None, load_kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    What a card says of the base model.

    Args:
        name (`str`, *optional*):
            Hub id or folder that it was loaded from, if it was.
        folder (`Path`, *optional*):
            Folder of the card, if it stays on this machine.
        load_kwargs (`dict`):
            Keyword arguments that it was loaded with.

    Returns:
        `dict`: `id`, of a model on the Hub, or `folder`, as seen from that of the card, or its name alone; `load`, those of
        the keyword arguments that tell which files were loaded; and `license`, `license_name`, `license_link` as far as its
        own card has them.
    """
    if not name:
        return {"load": {}}
    load = {key: load_kwargs[key] for key in ("revision", "variant") if load_kwargs.get(key)}
    if Path(name).is_dir():
        place = Path(name).resolve().name if folder is None else os.path.relpath(name, folder)
        return {"folder": place, "load": load, **_license_of_folder(Path(name))}
    return {
        "id": str(name),
        "load": load,
        **_license_on_hub(str(name), load.get("revision"), load_kwargs.get("token")),
    }


def _license_of_folder(folder: Path) -> dict[str, Any]:
    try:
        data = ModelCard.load(folder / "README.md").data
    except Exception:  # there is none, or its metadata is no YAML
        return {}
    license = _license(data)
    if not license.get("license_link", "").startswith(("https://", "http://")):
        license.pop("license_link", None)  # a file that only the base's folder has
    return license


@cache  # a card is written with every checkpoint; a Hub that did not answer is not asked again
def _license_on_hub(repo: str, revision: str | None, token: str | bool | None) -> dict[str, Any]:
    try:
        data = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT, token=token).card_data
    except Exception as error:
        logger.info(f"The card names no license: {repo} could not be asked ({type(error).__name__}).")
        return {}
    license = _license(data)
    link = license.get("license_link")
    if link and not link.startswith(("https://", "http://")):
        license["license_link"] = f"https://huggingface.co/{repo}/blob/{revision or 'main'}/{link}"
    return license


def _license(data) -> dict[str, Any]:
    keys = ("license", "license_name", "license_link")
    return {key: data.get(key) for key in keys if data is not None and data.get(key)}
