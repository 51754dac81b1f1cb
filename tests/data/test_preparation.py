# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import pickle
import re
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import DatasetDict, IterableDataset, IterableDatasetDict, load_from_disk
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

from tests.fixtures.pairs import dataset_of, make_pairs, random_image, random_mask
from trl_focus.data.batches import PreferenceRows, PreferenceStream, RowKey
from trl_focus.data.collator import DataCollatorForDiffusionPreference
from trl_focus.data.images import decode_image
from trl_focus.data.layout import Layout, LayoutRule, target_size
from trl_focus.data.preparation import prepare_preferences
from trl_focus.families.flux2 import Flux2References
from trl_focus.focus.complexity import complexity


FLUX2 = LayoutRule(64, 16, Flux2References(Flux2ImageProcessor(), 16, 1024**2))
TEXT_ONLY = LayoutRule(64, 8)


def image(size=(64, 64), seed=0):
    return random_image(np.random.default_rng(seed), size)


def pair(size=(64, 64), rejected_size=None, **columns):
    return {"prompt": "a cat", "chosen": image(size), "rejected": image(rejected_size or size, 1), **columns}


def tie(size=(64, 64), **columns):
    return pair(size, rejected=image(size), **columns)


def as_dataset(dataset):
    return dataset


def as_stream(dataset):
    return dataset.to_iterable_dataset()


def untyped(dataset):
    """A stream that does not know its features."""
    return IterableDataset.from_generator(rows_of, gen_kwargs={"rows": [[row] for row in dataset]})


def rows_of(rows):
    yield from (row for (row,) in rows)


KINDS = pytest.mark.parametrize("kind", [as_dataset, as_stream, untyped])


def prepared_rows(dataset, rule=FLUX2, **kwargs):
    """All rows of a prepared dataset or stream, in their order."""
    prepared = prepare_preferences(dataset, rule, **kwargs)
    if isinstance(prepared, PreferenceRows):
        return [prepared[RowKey(i)] for i in range(len(prepared))]
    return [row for batch in prepared for row in batch]


# ---- Rows that can't be trained on ----


MASKS = {"chosen_masks": [random_mask(np.random.default_rng(0))], "rejected_masks": [None]}
BAD = {
    "aspect": (pair((64, 64), (80, 64), **MASKS), "`rejected` is 80x64 pixels and `chosen` 64x64: the aspect ratios"),
    "small reference": (pair(references=[image((200, 63))], **MASKS), "`references` holds an image .* small: 200×63"),
    "long reference": (pair(references=[image((64, 600))], **MASKS), "`references` holds an image .* too extreme"),
    "no masks": (pair(), "has no `chosen_masks` and `rejected_masks`"),
    "masks of one": (pair(chosen_masks=[None]), "has no `chosen_masks` and `rejected_masks`"),
    "tie": (tie(**MASKS), "`chosen` and `rejected` are the same picture"),
    "schema": (pair(**{**MASKS, "prompt": " "}), "`prompt` is empty"),
}


@KINDS
@pytest.mark.parametrize("bad, message", BAD.values(), ids=BAD)
def test_errors_name_row_and_column(bad, message, kind):
    good = pair(**MASKS)
    with pytest.raises(ValueError, match=f"row 2( of the stream)?: {message}"):
        prepared_rows(kind(dataset_of(good, good, bad, good)), needs={"masks"})
    assert len(prepared_rows(kind(dataset_of(good, good)), needs={"masks"})) == 2


@KINDS
def test_references_for_a_model_that_takes_none(kind):
    data = make_pairs(2, n_references=[0, 1])
    with pytest.raises(ValueError, match=r"row 1: `references` is not empty.*remove_columns\(\['references'\]\)"):
        prepared_rows(kind(data), TEXT_ONLY)
    assert len(prepared_rows(kind(data.remove_columns("references")), TEXT_ONLY)) == 2


@KINDS
def test_what_is_allowed(kind):
    data = kind(dataset_of(pair((64, 64), (200, 64)), pair((64, 64), (64, 64))))
    assert len(prepared_rows(data, LayoutRule(64, 16, stretch=False))) == 2
    assert len(prepared_rows(kind(dataset_of(pair((100, 100), (109, 100)))))) == 1
    assert len(prepared_rows(kind(make_pairs(2, masks=False)))) == 2


def test_the_first_ten_rows_are_listed():
    rows = [pair((64, 64), (128, 64)) if i % 2 else pair() for i in range(26)]
    with pytest.raises(ValueError) as error:
        prepare_preferences(dataset_of(*rows), FLUX2)
    assert re.findall(r"^row (\d+): `rejected`", str(error.value), re.M) == [str(i) for i in range(1, 21, 2)]
    assert str(error.value).endswith("and 3 more rows")
    with pytest.raises(ValueError) as error:
        prepare_preferences(dataset_of(*rows[:20]), FLUX2)
    assert "more rows" not in str(error.value)


# ---- What a focus map needs ----


REFERENCE = {"references": [image()]}


@KINDS
def test_every_row_needs_references(kind):
    data = kind(dataset_of(pair(**REFERENCE), pair()))
    with pytest.raises(ValueError, match="row 1: has no `references`.*focus_prior='similarity'"):
        prepared_rows(data, needs={"references"})
    assert len(prepared_rows(data, needs={"similarity"})) == 2


@pytest.mark.parametrize("references", [True, False])
def test_nothing_to_compare_with_is_said(references, caplog):
    rows = [pair(), pair(**REFERENCE) if references else pair((64, 64), (68, 64))]
    prepare_preferences(dataset_of(*rows), FLUX2, needs={"similarity"})
    assert ("nothing to compare images with" in caplog.text) is not references


@KINDS
@pytest.mark.parametrize("stretch", [True, False])
def test_detail_is_that_of_the_image_at_its_trained_size(kind, stretch):
    data = dataset_of(pair((128, 64)), pair((64, 64), (68, 64)))
    rule = LayoutRule(64, 16, stretch=stretch)
    rows = prepared_rows(kind(data), rule, needs={"detail"})
    assert "chosen_detail" not in prepared_rows(kind(data), rule)[0]
    wide, square = sorted(
        rows, key=lambda row: row["prompt"] == "" or np.array_equal(row["chosen"], data[1]["chosen"])
    )
    for row, target, sizes in ((wide, (48, 96), [(96, 48)] * 2), (square, (64, 64), [(64, 64), (64, 64)])):
        assert rule(*(data[0]["chosen"].size,) * 2).size == (48, 96)
        for name, size in zip(("chosen", "rejected"), sizes, strict=True):
            pixels = np.array(decode_image(row[name]).convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS))
            expected = complexity(torch.tensor(pixels).permute(2, 0, 1)[None], 16)[0]
            actual = np.asarray(decode_image(row[f"{name}_detail"])) / 255
            assert actual.shape == (target[0] // 16, target[1] // 16)
            np.testing.assert_allclose(actual, expected, atol=0.5 / 255 + 1e-6)


def test_detail_is_computed_once(tmp_path, monkeypatch):
    data = dataset_of(pair(), pair((64, 64), (68, 64)))
    data.save_to_disk(tmp_path / "pairs")
    load = partial(load_from_disk, tmp_path / "pairs")
    first = prepare_preferences(load(), FLUX2, needs={"detail"})
    monkeypatch.setattr("trl_focus.data.detail.complexity", None)
    again = prepare_preferences(load(), FLUX2, needs={"detail"})
    assert np.array_equal(first[RowKey(1)]["rejected_detail"], again[RowKey(1)]["rejected_detail"])
    with pytest.raises(TypeError):
        prepare_preferences(load(), LayoutRule(32, 16, FLUX2.references), needs={"detail"})


def test_detail_goes_with_its_row_where_ties_are_dropped():
    data = dataset_of(tie(), pair((64, 64)), tie(), dict(pair(), chosen=PIL.Image.new("RGB", (64, 64), "red")))
    prepared = prepare_preferences(data, FLUX2, ties="drop", needs={"detail"})
    assert np.asarray(prepared[RowKey(0)]["chosen_detail"]).any()
    assert not np.asarray(prepared[RowKey(1)]["chosen_detail"]).any()


# ---- Ties ----


@KINDS
def test_ties_are_dropped(kind):
    sizes = [(64, 64), (128, 64), (64, 128), (128, 64), (192, 64)]
    rows = [pair(size) for size in sizes]
    rows[1:1] = [tie((64, 192))]
    rows[4:4] = [tie((64, 64))]
    data = kind(dataset_of(*({**row, "prompt": f"pair {i}"} for i, row in enumerate(rows))))
    kept = prepared_rows(data, ties="drop")
    assert {row["prompt"] for row in kept} == {f"pair {i}" for i in (0, 2, 3, 5, 6)}
    with pytest.raises(ValueError, match="row 1: `chosen` and `rejected` are the same picture"):
        prepared_rows(data)
    if kind is as_dataset:  # layouts are those of the rows that are left, messages count as the user does
        prepared = prepare_preferences(data, FLUX2, ties="drop")
        assert prepared.layouts == [Layout(target_size(*size, 64, 16)) for size in sizes]
        assert [prepared[RowKey(i)]["chosen"].size for i in range(5)] == sizes
        with pytest.raises(ValueError, match=r"trained:\nrow 0: .*\nrow 2: .*\nrow 3: .*\nrow 5: .*\nrow 6: "):
            prepare_preferences(data, FLUX2, ties="drop", needs={"masks"})


# ---- What is taken, and what comes out ----


@pytest.mark.parametrize(
    "dataset",
    [
        [pair()],
        {"train": [pair()]},
        DatasetDict(train=make_pairs(1)),
        IterableDatasetDict(train=make_pairs(1).to_iterable_dataset()),
        "user/dataset",
        None,
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_what_is_no_dataset(dataset):
    with pytest.raises(TypeError, match="must be a .*" + type(dataset).__name__) as error:
        prepare_preferences(dataset, FLUX2)
    assert ("split" in str(error.value)) == isinstance(dataset, dict)


@pytest.mark.parametrize("kind", [as_dataset, as_stream])
def test_columns_are_checked(kind):
    with pytest.raises(ValueError, match="'rejected'"):
        prepare_preferences(kind(make_pairs(1).remove_columns("rejected")), FLUX2)
    with pytest.raises(TypeError, match="`prompt`"):
        prepare_preferences(kind(make_pairs(1).remove_columns("prompt").add_column("prompt", [1])), FLUX2)


@pytest.mark.parametrize("kind", [as_dataset, as_stream])
def test_only_columns_of_the_schema_are_kept(kind):
    data = make_pairs(2, n_references=1)
    rows = prepared_rows(kind(data.add_column("jpg_0", [b"large"] * 2)))
    assert [row.keys() - {"key"} for row in rows] == [{*data.column_names}] * 2


def test_layouts():
    sizes = [(64, 64), (128, 64), (64, 128), (100, 100)]
    data = make_pairs(4, size=sizes, n_references=[0, 1, 2, 0])
    prepared = prepare_preferences(data, FLUX2)
    assert len(prepared) == 4
    assert prepared.layouts == [
        Layout(target_size(*size, 64, 16), ((64, 64),) * n) for size, n in zip(sizes, [0, 1, 2, 0], strict=True)
    ]
    assert prepared.layouts[0] == prepared.layouts[3]
    stream = prepare_preferences(as_stream(data), FLUX2)
    assert isinstance(stream, PreferenceStream)
    stream.batch_size = 2
    assert sorted([row["key"].row for row in batch] for batch in stream) == [[0, 3], [1], [2]]


@pytest.mark.parametrize("kind", [as_stream, untyped])
@pytest.mark.parametrize("n", [0, 2])
def test_stream_and_dataset_collate_alike(n, kind):
    data = make_pairs(4, n_references=n)
    collate = DataCollatorForDiffusionPreference(FLUX2, 16, random_flip=True)
    batches = [collate(prepared_rows(source)) for source in (data, kind(data))]
    assert batches[0].keys() == batches[1].keys() > {"chosen_masks", "references"}
    for name in ("chosen", "rejected", "chosen_masks", "rejected_masks"):
        assert batches[0][name].equal(batches[1][name])
    assert len(batches[0]["references"]) == n
    for one, other in zip(*(batch["references"] for batch in batches), strict=True):
        assert one.equal(other)


def test_rows_of_a_stream_stay_encoded():
    (row, *_) = prepared_rows(as_stream(make_pairs(2, n_references=2)))
    values = [row["chosen"], row["rejected"], *row["references"], *row["chosen_masks"], *row["rejected_masks"]]
    assert len(values) == 8 and all(value["bytes"] for value in values)


def test_stream_travels_to_workers_that_are_not_forked():
    stream = prepare_preferences(as_stream(make_pairs(3)), FLUX2, ties="drop")
    assert [row["key"].row for batch in pickle.loads(pickle.dumps(stream)) for row in batch] == [0, 1, 2]


@pytest.mark.parametrize("kind", [as_dataset, as_stream])
@pytest.mark.parametrize("format", ["torch", "numpy", "arrow", "pandas"])
def test_formatted_datasets(format, kind):
    data = make_pairs(2, n_references=1)
    rows = prepared_rows(kind(data).with_format(format), needs={"masks"})
    batch = DataCollatorForDiffusionPreference(FLUX2, 16)(rows)
    assert np.array_equal(batch["chosen"][1].permute(1, 2, 0), data[1]["chosen"])
    assert batch["prompt"] == data["prompt"][:]


def test_columns_that_a_format_hides_are_seen():
    data = make_pairs(2).with_format("numpy", columns=["prompt"])
    assert {"chosen", "chosen_masks"} < prepared_rows(data, needs={"masks"})[0].keys()


def test_the_given_dataset_stays_as_it_is():
    data = make_pairs(2).add_column("other", [1, 2]).with_format("torch")
    prepare_preferences(data, FLUX2)
    assert data.format["type"] == "torch" and "other" in data.column_names
