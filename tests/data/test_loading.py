# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Pairs by name: folders of every kind, mixtures, columns of other names, and files outside."""

import json
import shutil

import datasets
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from tests.fixtures.broken import BLUE, PNG, files, image_folder, pair, picture, table
from tests.fixtures.pairs import make_pairs
from trl_focus.data import decode_image, inspect_row, load_preferences
from trl_focus.data.loading import load_mixture, map_columns
from trl_focus.data.paths import confined, places_of
from trl_focus.errors import InputError
from trl_focus.scripts.arguments import ScriptArguments
from trl_focus.scripts.training import load_splits, named_in_card


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pairs").mkdir()
    return tmp_path / "pairs"


def named(prompt):
    return table(pair(prompt=prompt))


FOLDERS = {
    "save_to_disk": lambda folder: named("train").save_to_disk(folder),
    "save_to_disk with splits": lambda folder: DatasetDict(train=named("train"), test=named("test")).save_to_disk(
        folder
    ),
    "parquet": lambda folder: named("train").to_parquet(folder / "train.parquet"),
    "images": image_folder(prompt="train"),
    "images in folders of their own": files(
        chosen__a_png=PNG,
        rejected__a_png=BLUE,
        metadata_jsonl=json.dumps(
            {"prompt": "train", "chosen_file_name": "chosen/a.png", "rejected_file_name": "rejected/a.png"}
        ),
    ),
    "pairs": files(chosen__a_png=PNG, rejected__a_png=BLUE, prompts__a_txt="train"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("build", FOLDERS.values(), ids=FOLDERS)
def test_folders(build, streaming, folder):
    build(folder)
    dataset = load_preferences(str(folder), streaming=streaming)
    assert isinstance(dataset, IterableDataset if streaming else Dataset)
    (row,) = dataset
    assert row["prompt"] == "train"
    assert inspect_row(row).problems == []
    image = row["chosen"] if isinstance(row["chosen"], PIL.Image.Image) else decode_image(row["chosen"])
    assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_images_in_an_archive(folder, tmp_path):
    image_folder()(folder)
    (tmp_path / "zipped").mkdir()
    shutil.make_archive(tmp_path / "zipped" / "train", "zip", folder)
    for streaming in (False, True):
        dataset = load_preferences(str(tmp_path / "zipped"), streaming=streaming)
        dataset = dataset if streaming else dataset.with_format("arrow").map(lambda t: t)
        row = next(iter(dataset)) if streaming else dataset[0].to_pylist()[0]
        assert inspect_row(row).problems == []


@pytest.mark.parametrize("build", [FOLDERS["parquet"], FOLDERS["images"], FOLDERS["save_to_disk"]])
def test_a_snapshot_of_the_cache(build, tmp_path):
    # as `hf download` leaves it: each file a link to one in `blobs`
    snapshot, blobs = tmp_path / "datasets--a--b" / "snapshots" / "1", tmp_path / "datasets--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    build(snapshot)
    for number, file in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        blob = file.rename(blobs / str(number))
        file.symlink_to(blob)
    (row,) = load_preferences(str(snapshot), streaming=True)
    assert row["prompt"] == "train" and inspect_row(row).problems == []


def test_places(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache, unpacked, address = places_of("user/pairs", local=False)
    assert cache == str(tmp_path.resolve() / "datasets--user--pairs") and address == "hf://datasets/user/pairs"
    (tmp_path / "datasets--user--pairs").mkdir()
    mine, others = tmp_path / "datasets--user--pairs" / "a.png", tmp_path / "datasets--user--pairs-2" / "a.png"

    def refused(path):
        values = {"chosen": [{"bytes": None, "path": str(path)}]}
        dataset = Dataset.from_dict(values, features=datasets.Features({"chosen": datasets.Image()}))
        outcomes = set()
        for kind in (dataset, dataset.to_iterable_dataset()):
            try:
                checked = confined(kind, [cache, unpacked, address])
                if kind is not dataset:
                    next(iter(checked))
                outcomes.add(False)
            except InputError:
                outcomes.add(True)
        (outcome,) = outcomes
        return outcome

    assert not refused(mine) and refused(others)
    assert not refused("hf://datasets/user/pairs@main/a.png") and refused("hf://datasets/user/pairs2@main/a.png")
    assert not refused(f"zip://a.png::{mine.with_name('a.zip')}") and refused(f"zip://a.png::{tmp_path}/a.zip")
    assert not refused("zip://a.png::hf://datasets/user/pairs@main/a.zip")
    assert refused("hf://datasets/user/pairs@main/../../someone/private/a.png") and refused("http://127.0.0.1/a.png")


def test_the_row_of_a_path_inside_lists(tmp_path):
    rows = [pair(references=[]), pair(references=None), pair(references=[picture(), picture()])]
    dataset = table(*rows)
    outside = {"bytes": None, "path": "/etc/passwd"}
    values = dataset.with_format("arrow")[:].to_pylist()
    values[2]["references"][1] = outside
    dataset = Dataset.from_list(values, features=dataset.features)
    for kind in (dataset, dataset.to_iterable_dataset()):
        with pytest.raises(InputError, match="row 2: .references. names the file '/etc/passwd'"):
            list(confined(kind, [str(tmp_path)]))


class TestColumns:
    def test_names(self):
        dataset = table(pair()).rename_columns({"prompt": "caption"}).add_column("prompt", ["long"])
        mapped = map_columns(dataset, {"prompt": "caption", "chosen": "rejected", "rejected": "chosen"})
        assert sorted(mapped.column_names) == ["chosen", "prompt", "rejected"]
        assert mapped[0]["prompt"] == "a cat"
        assert mapped[0]["chosen"].getpixel((0, 0)) == (0, 0, 255)

    def test_of_a_stream_without_features(self):
        rows = [{"caption": "a", "chosen": picture(), "rejected": picture("blue")}]
        stream = IterableDataset.from_generator(lambda: iter(rows))
        assert next(iter(map_columns(stream, {"prompt": "caption"})))["prompt"] == "a"


class TestMixture:
    @pytest.fixture
    def two(self, tmp_path):
        for name, count in (("a", 6), ("b", 2)):
            table(*(pair(prompt=f"{name}{i}") for i in range(count))).save_to_disk(tmp_path / name)
        return str(tmp_path / "a"), str(tmp_path / "b")

    def test_joined(self, two):
        for streaming in (False, True):
            mixture = load_mixture([{"path": path} for path in two], streaming)
            assert [row["prompt"] for row in mixture] == ["a0", "a1", "a2", "a3", "a4", "a5", "b0", "b1"]

    def test_fractions(self, two):
        a, b = two
        mixture = load_mixture([{"path": a, "fraction": 2}, {"path": b, "fraction": 1}])
        assert mixture["prompt"][:] == ["a0", "a1", "a2", "a3", "b0", "b1"]

    def test_of_other_columns(self, two, tmp_path):
        row = pair(references=[picture()])
        table(row).rename_columns({"prompt": "caption"}).add_column("score", [3]).save_to_disk(tmp_path / "c")
        mixture = load_mixture([{"path": two[1]}, {"path": str(tmp_path / "c"), "columns": {"prompt": "caption"}}])
        assert [len(references or []) for references in mixture["references"]] == [0, 0, 1]

    @pytest.mark.parametrize(
        "parts, message",
        [
            ([{"name": "a"}], "it needs .path."),
            ([{"path": "a", "weight": 1}], "and may have name, split"),
            ([{"path": "a", "fraction": 1}, {"path": "b"}], "for all of"),
            ([{"path": "a", "fraction": 0}], "set above 0"),
        ],
    )
    def test_refused(self, parts, message):
        with pytest.raises(InputError, match=message):
            load_mixture(parts)


class TestSplits:
    def test_held_out_rows_are_the_same_in_every_process(self, tmp_path):
        make_pairs(8).save_to_disk(tmp_path / "pairs")
        arguments = ScriptArguments(str(tmp_path / "pairs"), test_split_size=0.25)
        first, again = (load_splits(arguments, True, seed=3) for _ in range(2))
        assert [len(part) for part in first] == [6, 2]
        assert first[1]["prompt"][:] == again[1]["prompt"][:] != load_splits(arguments, True, seed=4)[1]["prompt"][:]
        assert len(load_splits(arguments, False, seed=3)[0]) == 8
        rows = ScriptArguments(datasets=[str(tmp_path / "pairs")], test_split_size=3.0)
        assert len(load_splits(rows, True, seed=3)[1]) == 3

    def test_mixture_without_held_out_rows(self, tmp_path):
        make_pairs(2).save_to_disk(tmp_path / "pairs")
        with pytest.raises(InputError, match="set .test_split_size."):
            load_splits(ScriptArguments(datasets=[str(tmp_path / "pairs")]), True, 0)

    def test_what_the_hub_is_asked_for(self, monkeypatch):
        seen = []

        class Builder:
            config = datasets.BuilderConfig()

            def __init__(self, path, **kwargs):
                self.asked = path, kwargs

            def download_and_prepare(self):
                pass

            def as_dataset(self, split):
                seen.append((*self.asked, split))
                return table(pair())

        monkeypatch.setattr(datasets, "load_dataset_builder", Builder)
        arguments = ScriptArguments("user/pairs", "big", "v1", dataset_test_split="dev")
        load_splits(arguments, True, 0)
        asked = {"name": "big", "revision": "v1"}
        assert seen == [("user/pairs", asked, "train"), ("user/pairs", asked, "dev")]


@pytest.mark.parametrize(
    "given, name",
    [
        ({"dataset_name": "user/a"}, "user/a"),
        ({"datasets": ["user/a", "."]}, "user/a"),
        ({"datasets": ["user/a", "user/b"]}, None),
        ({"dataset_name": "."}, None),
    ],
    ids=str,
)
def test_no_local_path_is_named_in_a_card(given, name):
    assert named_in_card(ScriptArguments(**given)) == name
