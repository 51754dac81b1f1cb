# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Pushing preference pairs: what is uploaded where, and what their card says."""

import re
import shlex
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import DatasetCard

from tests.fixtures.broken import mask, pair, picture, table
from tests.fixtures.pairs import make_pairs
from trl_focus import push_preference_dataset
from trl_focus.cli import make_parser
from trl_focus.scripts import diffusion_dpo, focus_dpo
from trl_focus.scripts.arguments import parse


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of one README, and of what was uploaded."""
    hub = SimpleNamespace(pushed=[], cards=[], readme=tmp_path / "README.md")
    hub.readme.write_text("---\nconfigs:\n- config_name: default\ntags:\n- cats\n---\n")

    def push(dataset, repo_id, config_name, **kwargs):
        hub.pushed.append((dataset, repo_id, config_name, kwargs))
        return SimpleNamespace(repo_url=SimpleNamespace(repo_id=f"alice/{repo_id.split('/')[-1]}"))

    def push_card(card, repo_id, **kwargs):
        hub.cards.append((repo_id, kwargs))
        hub.readme.write_text(str(card))

    monkeypatch.setattr(DatasetDict, "push_to_hub", push)
    monkeypatch.setattr("trl_focus.hub.dataset.hf_hub_download", lambda *args, **kwargs: str(hub.readme))
    monkeypatch.setattr(DatasetCard, "push_to_hub", push_card)
    return hub


def test_pushes_with_what_was_given(hub):
    where = {"private": True, "revision": "v1", "commit_message": "pairs", "token": "hf_secret"}
    push_preference_dataset(make_pairs(2), "pairs", config_name="big", split="dev", **where)
    ((dataset, repo_id, config, kwargs),) = hub.pushed
    assert list(dataset) == ["dev"] and repo_id == "pairs" and config == "big"
    assert kwargs == {**where, "num_proc": None}
    ((card_repo, card_kwargs),) = hub.cards
    assert card_repo == "alice/pairs"
    assert card_kwargs == {key: value for key, value in where.items() if key != "private"}
    assert "hf_secret" not in hub.readme.read_text()


def test_card(hub):
    rows = [
        pair(
            prompt=f"{i}",
            references=[picture()] * (i % 2),
            chosen_masks=[mask(51)],
            rejected_masks=[None],
            subjects=["a"],
        )
        for i in range(3)
    ]
    push_preference_dataset(DatasetDict(train=table(*rows), test=table(pair())), "alice/pairs", license="cc0-1.0")
    card = DatasetCard(hub.readme.read_text())
    assert card.data.license == "cc0-1.0"
    assert card.data.tags == ["cats", "dpo", "image", "preference", "trl-focus"]
    assert card.data.to_dict()["configs"] == [{"config_name": "default"}]
    assert "| `train` | 3 | 32x24 (3) | 0 (2), 1 (1) | 3 | 20.0% |" in card.text
    assert "| `test` | 1 | 32x24 (1) | 0 (1) | 0 | none |" in card.text
    described = re.findall(r"^\| `(\w+)` \| [a-z]", card.text, flags=re.MULTILINE)
    assert described == ["prompt", "chosen", "rejected", "references", "chosen_masks", "rejected_masks", "subjects"]


def test_no_licence_unless_it_is_named(hub):
    push_preference_dataset(make_pairs(2), "alice/pairs")
    assert "license" not in hub.readme.read_text()


@pytest.mark.parametrize("masks, method, script", [(True, "focus", focus_dpo), (False, "dpo", diffusion_dpo)])
def test_commands_of_the_card_are_taken(hub, masks, method, script):
    push_preference_dataset(make_pairs(2, masks=masks), "alice/pairs", config_name="big", split="dev", revision="v1")
    text = DatasetCard(hub.readme.read_text()).text
    assert 'load_dataset("alice/pairs", "big", split="dev", revision="v1")' in text
    lines = text.replace("\\\n", " ").splitlines()
    validate, train = (shlex.split(line)[1:] for line in lines if line.startswith("trl-focus "))
    asked = make_parser().parse_args(validate)
    assert (asked.dataset, asked.config, asked.split, asked.revision) == ("alice/pairs", "big", "dev", "v1")
    assert train[:2] == ["train", method]
    arguments = parse(script.make_parser(), train[2:]).arguments[0]
    assert (arguments.dataset_name, arguments.dataset_config) == ("alice/pairs", "big")
    assert (arguments.dataset_train_split, arguments.dataset_revision) == ("dev", "v1")


def test_a_text_of_ones_own_stays(hub):
    hub.readme.write_text("---\ntags:\n- cats\n---\n\n# My cats\n")
    push_preference_dataset(make_pairs(2), "alice/pairs")
    card = DatasetCard(hub.readme.read_text())
    assert card.text.strip() == "# My cats"
    assert card.data.tags == ["cats", "dpo", "image", "preference", "trl-focus"]


def test_a_text_from_here_is_written_anew(hub):
    push_preference_dataset(make_pairs(2), "alice/pairs")
    push_preference_dataset(make_pairs(3), "alice/pairs")
    assert "| `train` | 3 |" in hub.readme.read_text()
    assert hub.readme.read_text().count("# pairs") == 1


def test_ties(hub):
    tied = table(pair(), pair(rejected=picture()))
    with pytest.raises(ValueError, match="row 1: `chosen` and `rejected` are the same picture"):
        push_preference_dataset(tied, "alice/pairs")
    assert hub.pushed == hub.cards == []
    push_preference_dataset(tied, "alice/pairs", ties="drop")
    assert len(hub.pushed[0][0]["train"]) == 1


def test_refused(hub):
    for dataset, kwargs, message in [
        (table(pair(prompt="")), {}, "row 0: `prompt` is empty"),
        (DatasetDict(train=make_pairs(2), test=table(pair(prompt=""))), {}, "row 0: `prompt` is empty"),
        (Dataset.from_dict({"prompt": ["a"]}), {}, "lacks the columns"),
        (DatasetDict(train=make_pairs(2)), {"split": "dev"}, "several splits, which keep their names"),
    ]:
        with pytest.raises(ValueError, match=message):
            push_preference_dataset(dataset, "alice/pairs", **kwargs)
    assert hub.pushed == hub.cards == []
