# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import datasets
from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData, hf_hub_download

from ..data.inspection import span
from ..data.schema import COLUMNS, SHOWN
from ..data.validation import validate_dataset


TEMPLATE = Path(__file__).with_name("dataset_card.md.jinja")
MARK = (
    "<!-- Written by trl_focus.push_preference_dataset: without this line, the text is yours and stays as it is. -->"
)
TAGS = ("dpo", "image", "preference", "trl-focus")
MEANINGS = {
    "prompt": "what both images were made for",
    "chosen": "the better image",
    "rejected": "the worse image",
    "references": "images that the model is given to look at",
    "reference_masks": "for each reference, the mask of its subject",
    "chosen_masks": "for each subject, its mask on `chosen`; null or black where it is absent",
    "rejected_masks": "for each subject, its mask on `rejected`; null or black where it is absent",
    "subjects": "names of the subjects, in the order of the masks",
    "reference_subjects": "for each reference, the subject that it shows",
}


def _described(name: str, reports: datasets.Dataset) -> dict[str, Any]:
    """A split as a row of the card's table."""
    sizes = Counter(zip(reports["width"], reports["height"], strict=True)).most_common()
    counts = Counter(len(references) for references in reports["reference_sizes"])
    shares = [share for row in reports["mask_shares"] for share in row if share > 0]
    shown = [f"{width}x{height} ({count})" for (width, height), count in sizes[:SHOWN]]
    return {
        "name": name,
        "rows": len(reports),
        "sizes": ", ".join([*shown, *([f"{len(sizes) - SHOWN} others"] if len(sizes) > SHOWN else [])]),
        "references": ", ".join(f"{count} ({rows})" for count, rows in sorted(counts.items())),
        "masked": sum(reports["has_masks"]),
        "area": span(shares, "{:.1%}") if shares else "none",
    }


def dataset_card(
    repo_id: str,
    reports: Mapping[str, datasets.Dataset],
    columns: list[str],
    data: Mapping[str, Any],
    license: str | None = None,
    config_name: str = "default",
    revision: str | None = None,
) -> DatasetCard:
    """
    The card of preference pairs.

    Args:
        repo_id (`str`):
            Id of the dataset.
        reports (`Mapping[str, datasets.Dataset]`):
            For each split, the reports of [`~data.validate_dataset`].
        columns (`list[str]`):
            Columns of the dataset.
        data (`Mapping`):
            Metadata to keep: what `datasets` has written of files and features.
        license (`str`, *optional*):
            Licence, by its id on the Hub. None is named unless you name it.
        config_name (`str`, *optional*, defaults to `"default"`):
            Configuration.
        revision (`str`, *optional*):
            Branch on the Hub.
    """
    kept = {**data, **({"license": license} if license else {})}
    kept["tags"] = sorted({*TAGS, *(data.get("tags") or [])})
    return DatasetCard.from_template(
        DatasetCardData(**kept),
        template_path=str(TEMPLATE),
        mark=MARK,
        name=repo_id.split("/")[-1],
        repo=repo_id,
        config=None if config_name == "default" else config_name,
        revision=revision,
        splits=[_described(name, split) for name, split in reports.items()],
        columns={column: MEANINGS[column] for column in COLUMNS if column in columns},
        focus=any(split["has_masks"][:] and all(split["has_masks"]) for split in reports.values()),
    )


def push_preference_dataset(
    dataset: datasets.Dataset | datasets.DatasetDict,
    repo_id: str,
    config_name: str = "default",
    split: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    license: str | None = None,
    ties: Literal["error", "drop"] = "error",
    num_proc: int | None = None,
) -> CommitInfo:
    """
    Checks preference pairs and uploads them, with their images, as Parquet files and with a card that says what they hold.
    A card with a text of your own keeps it, and gets the tags.

    Example:

    ```python
    >>> from trl_focus import from_folder, push_preference_dataset

    >>> push_preference_dataset(from_folder("my-pairs"), "user/pairs", private=True)
    ```

    Args:
        dataset (`datasets.Dataset` or `datasets.DatasetDict`):
            Pairs in the preference schema, or several splits of them.
        repo_id (`str`):
            Where to: a name, or one with its namespace.
        config_name (`str`, *optional*, defaults to `"default"`):
            Configuration.
        split (`str`, *optional*):
            Name of the split, of a `datasets.Dataset`. Defaults to its own, or `"train"`.
        private (`bool`, *optional*):
            Whether a new repository is private. Defaults to the namespace's setting.
        revision (`str`, *optional*):
            Branch. Defaults to `"main"`.
        commit_message (`str`, *optional*):
            Message of the commit.
        token (`str`, *optional*):
            Token. Defaults to the one of `hf auth login`.
        license (`str`, *optional*):
            Licence, by its id on the Hub. None is named unless you name it.
        ties (`str`, *optional*, defaults to `"error"`):
            Whether pairs of one and the same picture are refused (`"error"`) or left out (`"drop"`).
        num_proc (`int`, *optional*):
            Number of processes that check and write.

    Returns:
        `huggingface_hub.CommitInfo`: The commit of the pairs. That of the card follows it.

    Raises:
        ValueError, TypeError: If the pairs could not be trained on. Nothing was uploaded.
    """
    if isinstance(dataset, datasets.DatasetDict):
        if split is not None:
            raise ValueError(f"`split` is {split!r}, and this holds several splits, which keep their names")
        parts = dict(dataset)
    else:
        name = split or (str(dataset.split) if getattr(dataset, "split", None) else "train")
        parts = {name: dataset}
    checked = {name: validate_dataset(part, ties, num_proc) for name, part in parts.items()}
    kept = datasets.DatasetDict({name: rows for name, (rows, _) in checked.items()})
    commit = kept.push_to_hub(
        repo_id,
        config_name,
        commit_message=commit_message,
        private=private,
        token=token,
        revision=revision,
        num_proc=num_proc,
    )
    # A name without its namespace has got one
    repo_id = commit.repo_url.repo_id
    written = DatasetCard(
        Path(hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=revision, token=token)).read_text(
            encoding="utf-8"
        )
    )
    card = dataset_card(
        repo_id,
        {name: reports for name, (_, reports) in checked.items()},
        next(iter(kept.values())).column_names,
        written.data.to_dict(),
        license,
        config_name,
        revision,
    )
    if written.text.strip() and MARK not in written.text:
        written.data = card.data
        card = written
    card.push_to_hub(
        repo_id, token=token, commit_message=commit_message or "Describe the preference pairs", revision=revision
    )
    return commit
