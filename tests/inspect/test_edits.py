# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json

import datasets
import numpy as np
import pytest

from tests.fixtures.pairs import make_pairs
from trl_focus.data import load_preferences, validate_dataset
from trl_focus.errors import InputError
from trl_focus.inspect import Edits, edited, flip, save, toggle


@pytest.fixture
def pairs():
    return make_pairs(4, n_references=[1, 2, 0, 1]).add_column("chosen_confidences", [[0.1], [0.2, 0.3], [0.4], [0.5]])


def same(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_toggle_leaves_the_old_ones_as_they_are():
    none = Edits()
    one = toggle(none, "flipped", 3)
    assert none == Edits() and one == Edits(flipped=frozenset({3})) and toggle(one, "flipped", 3) == none
    assert toggle(one, "dropped", 3) == Edits(frozenset({3}), frozenset({3}))


def test_flip_takes_all_that_belongs_to_an_image():
    row = {"prompt": "a", "chosen": 1, "rejected": 2, "chosen_masks": 3, "rejected_masks": 4, "chosen_by": 5}
    assert flip(row) == {**row, "chosen": 2, "rejected": 1, "chosen_masks": 4, "rejected_masks": 3}
    assert flip(flip(row)) == row


def test_edited(pairs):
    rows = edited(pairs, Edits(frozenset({0, 2}), frozenset({1, 2})))
    assert rows["prompt"][:] == [pairs[0]["prompt"], pairs[3]["prompt"]]
    assert rows.features == pairs.features
    assert same(rows[0]["chosen"], pairs[0]["rejected"]) and same(rows[0]["rejected"], pairs[0]["chosen"])
    assert same(rows[0]["chosen_masks"][0], pairs[0]["rejected_masks"][0])
    assert same(rows[1]["chosen"], pairs[3]["chosen"])
    assert rows["chosen_confidences"][:] == [[0.1], [0.5]]  # there is none of rejected to change places with


def test_what_compares_the_images_is_turned(pairs):
    told = {
        "model": "a",
        "seeds": {"chosen": 1, "rejected": 2},
        "scores": {"chosen": {"b": 0.5}, "rejected": {"b": 0.25}},
    }
    only = json.dumps({"corruption": "blur", "seed": 3})
    pairs = pairs.add_column("margin", [0.25, None, 0.5, 0.125])
    pairs = pairs.add_column("provenance", [json.dumps(told), only, json.dumps({"seeds": {"rejected": 4}}), None])
    rows = edited(pairs, Edits(frozenset({0, 1, 2}), frozenset()))
    assert rows.features == pairs.features and same(rows[0]["chosen"], pairs[0]["rejected"])
    assert rows["margin"][:] == [-0.25, None, -0.5, 0.125]
    turned = {
        "model": "a",
        "seeds": {"rejected": 1, "chosen": 2},
        "scores": {"rejected": {"b": 0.5}, "chosen": {"b": 0.25}},
    }
    assert json.loads(rows["provenance"][0]) == turned
    assert rows["provenance"][1:] == [only, json.dumps({"seeds": {"chosen": 4}}), None]
    row = {name: pairs[0][name] for name in ("margin", "provenance")}
    assert flip(row) == {name: rows[0][name] for name in row}
    assert flip({"margin": "wide", "provenance": "[1]"}) == {"margin": "wide", "provenance": "[1]"}


def test_no_edits(pairs):
    assert edited(pairs, Edits()).to_list() == pairs.to_list()


def test_saved_pairs_can_be_trained_on(pairs, tmp_path):
    folder = tmp_path / "out"
    assert save(pairs, Edits(frozenset({1}), frozenset({0})), str(folder)) == 3
    loaded = load_preferences(str(folder))
    assert same(loaded[0]["chosen"], pairs[1]["rejected"])
    assert len(validate_dataset(loaded)[0]) == 3


def test_nothing_is_written_over(pairs, tmp_path):
    pairs.save_to_disk(tmp_path / "pairs")
    before = {path: path.read_bytes() for path in (tmp_path / "pairs").rglob("*") if path.is_file()}
    source = datasets.load_from_disk(tmp_path / "pairs")
    with pytest.raises(InputError, match="is there already, and nothing is written over"):
        save(source, Edits(dropped=frozenset({0})), str(tmp_path / "pairs"))
    save(source, Edits(frozenset({1}), frozenset({0})), str(tmp_path / "other"))
    assert {path: path.read_bytes() for path in (tmp_path / "pairs").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "edits, folder, message",
    [(Edits(), " ", "Name a folder"), (Edits(dropped=frozenset(range(4))), "out", "Every pair is dropped")],
)
def test_refusals(edits, folder, message, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        save(pairs, edits, folder)
    assert not list(tmp_path.iterdir())
