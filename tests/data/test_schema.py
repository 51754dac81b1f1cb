# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import io
import logging

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, List, Sequence, Value, load_from_disk

from trl_focus.data import (
    COLUMNS,
    FEATURES,
    OPTIONAL_COLUMNS,
    check_columns,
    check_row,
    check_streamed_row,
    decode_image,
    decode_mask,
    inspect_row,
    is_tie,
    mask_to_array,
    reference_subject_indices,
    subject_count,
    validate_dataset,
    validation,
)


SIZE = (6, 4)
ORIENTATION = PIL.Image.ExifTags.Base.Orientation


def image(color="red", size=SIZE, mode="RGB"):
    return PIL.Image.new(mode, size, color)


def mask(value=255, size=SIZE, mode="L"):
    return PIL.Image.new(mode, size, value)


def stored(picture, format="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def pair(**columns):
    return {"prompt": "a cat", "chosen": image(), "rejected": image("blue"), **columns}


def dataset_of(*rows):
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    features = {name: FEATURES[name] for name in names}
    if any(isinstance(entry, str) for row in rows for entry in row.get("reference_subjects") or []):
        features["reference_subjects"] = List(Value("string"))
    return Dataset.from_list([{name: row.get(name) for name in names} for row in rows], features=Features(features))


BROKEN = {"bytes": b"no image", "path": None}
NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8))
TRUNCATED = {"bytes": stored(NOISE, "JPEG")["bytes"][:-1000], "path": None}

# What Arrow can hold: (column in question, a part of the sentence, the row's columns)
PROBLEMS = {
    "prompt None": ("prompt", "not a string", {"prompt": None}),
    "prompt empty": ("prompt", "empty", {"prompt": ""}),
    "prompt whitespace": ("prompt", "empty", {"prompt": " \n\t"}),
    "chosen None": ("chosen", "missing", {"chosen": None}),
    "rejected None": ("rejected", "missing", {"rejected": None}),
    "chosen undecodable": ("chosen", "can't be decoded: the content is not an image", {"chosen": BROKEN}),
    "rejected truncated": ("rejected", "can't be decoded: OSError", {"rejected": TRUNCATED}),
    "chosen file missing": ("chosen", "/nowhere.png", {"chosen": {"bytes": None, "path": "/nowhere.png"}}),
    "chosen 16 bits": ("chosen", "'I;16'", {"chosen": image(0, mode="I;16")}),
    "reference None": ("references", "[1] is missing", {"references": [image(), None]}),
    "reference undecodable": ("references", "[1] can't be decoded", {"references": [image(), BROKEN]}),
    "chosen mask size": ("chosen_masks", "[0] can't be used: its size is 4x6", {"chosen_masks": [mask(size=(4, 6))]}),
    "rejected mask size": (
        "rejected_masks",
        "[0] can't be used: its size is 6x4 pixels and its image's 5x7",
        {"rejected": image(size=(5, 7)), "rejected_masks": [mask()]},
    ),
    "reference mask size": (
        "reference_masks",
        "[1] can't be used: its size is 6x4 pixels and its image's 9x9",
        {"references": [image(), image(size=(9, 9))], "reference_masks": [mask(), mask()]},
    ),
    "mask undecodable": ("chosen_masks", "[0] can't be decoded", {"chosen_masks": [BROKEN]}),
    "mask mode": ("chosen_masks", "'I;16'", {"chosen_masks": [mask(0, mode="I;16")]}),
    "mask of 0 and 1": ("rejected_masks", "255", {"rejected_masks": [mask(1)]}),
    "too few chosen masks": (
        "chosen_masks",
        "length 1, and the row's number of subjects is 2",
        {"subjects": ["cat", "dog"], "chosen_masks": [mask()]},
    ),
    "too many rejected masks": (
        "rejected_masks",
        "length 2, and the row's number of subjects is 1",
        {"references": [image()], "rejected_masks": [mask(), mask()]},
    ),
    "masks of two photographs of one subject": (
        "chosen_masks",
        "length 2, and the row's number of subjects is 1",
        {"references": [image(), image()], "reference_subjects": [0, 0], "chosen_masks": [mask(), None]},
    ),
    "masks differ": ("rejected_masks", "length 1", {"chosen_masks": [mask(), mask()], "rejected_masks": [mask()]}),
    "reference masks count": (
        "reference_masks",
        "length 1 and `references` length 2",
        {"references": [image(), image()], "reference_masks": [mask()]},
    ),
    "reference masks alone": ("reference_masks", "`references` length 0", {"reference_masks": [mask()]}),
    "reference subjects count": (
        "reference_subjects",
        "length 1 and `references` length 2",
        {"references": [image(), image()], "reference_subjects": [0]},
    ),
    "reference subject unknown": (
        "reference_subjects",
        "[0] is 'cow'",
        {"references": [image()], "subjects": ["cat"], "reference_subjects": ["cow"]},
    ),
    "reference subject too large": (
        "reference_subjects",
        "[0] is 1",
        {"references": [image()], "subjects": ["cat"], "reference_subjects": [1]},
    ),
    "reference subject negative": (
        "reference_subjects",
        "[0] is -1",
        {"references": [image()], "reference_subjects": [-1]},
    ),
    "reference subject None": (
        "reference_subjects",
        "[0] is None",
        {"references": [image()], "reference_subjects": [None]},
    ),
    "subjects and references": (
        "references",
        "add `reference_subjects`",
        {"references": [image()], "subjects": ["cat", "dog"]},
    ),
    "subjects repeated": ("subjects", "'cat' more than once", {"subjects": ["cat", "dog", "cat"]}),
    "subject None": ("subjects", "None", {"subjects": ["cat", None]}),
}

# What only a stream can hold
GARBAGE = {
    "image of another type": ("chosen", "cast_column", {"chosen": "a.png"}),
    "image as an array": ("rejected", "ndarray", {"rejected": np.zeros((4, 6, 3), np.uint8)}),
    "dictionary without an image": ("chosen", "can't be decoded", {"chosen": {"url": "a"}}),
    "garbage in the dictionary": ("chosen", "can't be decoded", {"chosen": {"bytes": 3, "path": 4}}),
    "no pixels": ("rejected", "no pixels", {"rejected": image(size=(0, 5))}),
    "references int": ("references", "not a list", {"references": 3}),
    "references one image": ("references", "not a list", {"references": image()}),
    "masks str": ("chosen_masks", "not a list", {"chosen_masks": "ab"}),
    "mask of another type": ("chosen_masks", "[0] can't be decoded", {"chosen_masks": [3.5]}),
    "mask without pixels": ("chosen_masks", "0x4", {"chosen_masks": [mask(size=(0, 4))]}),
    "subjects unhashable": ("subjects", "not a name", {"subjects": [["cat"], {}]}),
    "reference subjects dict": ("reference_subjects", "not a list", {"reference_subjects": {"a": 0}}),
    "reference subject bool": (
        "reference_subjects",
        "[0] is True",
        {"references": [image()], "reference_subjects": [True]},
    ),
    "reference subject unhashable": (
        "reference_subjects",
        "[0] is []",
        {"references": [image()], "reference_subjects": [[]]},
    ),
    "indices and names": (
        "reference_subjects",
        "mixes",
        {"references": [image(), image()], "reference_subjects": [0, "cat"]},
    ),
}

VALID = {
    "plain": {},
    "null lists": dict.fromkeys(OPTIONAL_COLUMNS),
    "no references": {"references": [], "reference_masks": [], "reference_subjects": []},
    "subjects without references": {"subjects": ["cat", "dog"], "references": [], "chosen_masks": [mask(), None]},
    "null and black masks": {"chosen_masks": [None, mask(0)], "rejected_masks": [mask(0), None]},
    "masks of one image only": {"chosen_masks": [mask()]},
    "soft mask": {"chosen_masks": [mask(7)]},
    "reference without a mask": {"references": [image(), image()], "reference_masks": [None, mask()]},
    "references of other sizes": {
        "references": [image(size=(3, 8)), image()],
        "reference_masks": [mask(size=(3, 8)), None],
    },
    "two photographs of one subject": {
        "references": [image(), image("green"), image()],
        "reference_subjects": [0, 1, 0],
        "chosen_masks": [mask(), mask()],
    },
    "names": {
        "references": [image(), image()],
        "subjects": ["cat", "dog", "cow"],
        "reference_subjects": ["dog", "dog"],
        "rejected_masks": [None, mask(), None],
    },
    "names without subjects": {
        "references": [image(), image(), image()],
        "reference_subjects": ["dog", "cat", "dog"],
        "chosen_masks": [None, mask()],
    },
    "modes": {"chosen": image(0, mode="CMYK"), "rejected": image(3, mode="L"), "references": [image(0, mode="1")]},
}


class TestDecode:
    def test_image_passes_through(self):
        picture = image(mode="L", color=9)
        assert decode_image(picture) is picture

    @pytest.mark.parametrize("as_stored", [True, False], ids=["stored", "opened"])
    def test_orientation(self, as_stored):
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = 6  # to be turned clockwise
        picture = image("black", (4, 2))
        picture.putpixel((0, 1), (255, 255, 255))
        value = stored(picture, exif=exif)
        if not as_stored:
            value = PIL.Image.open(io.BytesIO(value["bytes"]))
        upright = decode_image(value)
        assert upright.size == (2, 4)
        assert upright.getpixel((0, 0)) == (255, 255, 255)
        assert decode_image(upright).size == (2, 4)

    def test_path(self, tmp_path):
        image("blue").save(tmp_path / "a.png")
        assert decode_image({"bytes": None, "path": str(tmp_path / "a.png")}).getpixel((0, 0)) == (0, 0, 255)

    def test_undecodable(self, tmp_path):
        (tmp_path / "a.png").write_text("no image")
        with pytest.raises(ValueError, match=r"a\.png is not an image file"):
            decode_image({"bytes": None, "path": str(tmp_path / "a.png")})
        with pytest.raises(ValueError, match="OSError"):
            decode_image(PIL.Image.open(io.BytesIO(TRUNCATED["bytes"])))
        with pytest.raises(TypeError, match="cast_column"):
            decode_image(b"bytes")

    @pytest.mark.parametrize(
        ("mode", "color", "expected"),
        [
            ("1", 1, 1.0),
            ("L", 51, 0.2),
            ("LA", (51, 0), 0.2),
            ("RGB", (51, 51, 51), 0.2),
            ("RGBA", (255, 255, 255, 0), 1.0),
            ("L", 0, 0.0),
        ],
    )
    def test_mask_values(self, mode, color, expected):
        array = mask_to_array(PIL.Image.new(mode, SIZE, color))
        assert array.shape == (4, 6)
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected, rtol=1e-6)

    def test_mask_palette(self):
        palette = image("black").quantize(2)
        palette.putpalette([0, 0, 0, 255, 255, 255])
        palette.putpixel((5, 0), 1)
        array = mask_to_array(palette)
        assert palette.mode == "P"
        assert array[0, 5] == 1
        assert array.sum() == 1

    @pytest.mark.parametrize(("mode", "one"), [("L", 1), ("LA", (1, 255)), ("P", 1), ("RGB", (1, 1, 1))])
    def test_mask_of_0_and_1(self, mode, one):
        picture = PIL.Image.new(mode, SIZE)
        if mode == "P":
            picture.putpalette([level for level in range(256) for _ in "RGB"])
        picture.putpixel((2, 2), one)
        with pytest.raises(ValueError, match="Multiply it by 255"):
            mask_to_array(picture)

    @pytest.mark.parametrize("mode", ["I;16", "I", "F", "CMYK", "PA"])
    def test_mask_mode(self, mode):
        with pytest.raises(ValueError, match=f"'{mode}'"):
            mask_to_array(PIL.Image.new(mode, SIZE))

    def test_absent(self):
        assert mask_to_array(None) is None
        assert decode_mask(None, SIZE) is None

    def test_mask_size(self):
        assert decode_mask(mask(), SIZE).shape == (4, 6)
        with pytest.raises(ValueError, match="6x4 pixels and its image's 4x6"):
            decode_mask(mask(), (4, 6))


class TestSubjects:
    @pytest.mark.parametrize(
        ("row", "count", "indices"),
        [
            ({}, 0, []),
            ({"references": [1, 1]}, 2, [0, 1]),
            ({"references": [1, 1], "reference_subjects": [1, 0]}, 2, [1, 0]),
            ({"references": [1, 1, 1], "reference_subjects": [0, 2, 0]}, 3, [0, 2, 0]),
            ({"references": [1, 1, 1], "reference_subjects": ["dog", "cat", "dog"]}, 2, [0, 1, 0]),
            (
                {"references": [1, 1], "subjects": ["cat", "dog", "cow"], "reference_subjects": ["cow", "cat"]},
                3,
                [2, 0],
            ),
            ({"references": [1, 1], "subjects": ["cat", "dog", "cow"], "reference_subjects": [2, "dog"]}, 3, [2, 1]),
            ({"subjects": ["cat", "dog"], "chosen_masks": [None, None]}, 2, []),
            ({"references": [1, 1], "subjects": ["cat", "dog"]}, 2, [0, 1]),
            ({"references": [], "chosen_masks": [None] * 3, "rejected_masks": None}, 3, []),
            ({"references": None, "rejected_masks": [None]}, 1, []),
        ],
    )
    def test_count_and_indices(self, row, count, indices):
        assert subject_count(row) == count
        assert reference_subject_indices(row) == indices


class TestColumns:
    def test_missing(self):
        dataset = dataset_of(pair()).rename_column("chosen", "winner").remove_columns("prompt")
        with pytest.raises(ValueError, match="'prompt', 'chosen'; it has 'winner', 'rejected'.*rename_column"):
            check_columns(dataset)

    @pytest.mark.parametrize(
        ("column", "values", "remedy"),
        [
            ("chosen", ["a.png"], "datasets.Image()"),
            ("rejected", [b"bytes"], "datasets.Image()"),
            ("references", [["a.png"]], "datasets.List(datasets.Image())"),
            ("chosen_masks", [image()], "datasets.List(datasets.Image())"),
            ("chosen_masks", [[[0, 1]]], "datasets.List(datasets.Image())"),
            ("prompt", [3], 'datasets.Value("string")'),
            ("subjects", ["cat"], 'datasets.List(datasets.Value("string"))'),
            ("reference_subjects", [[0.5]], 'datasets.List(datasets.Value("int64"))'),
        ],
    )
    @pytest.mark.parametrize("streaming", [False, True])
    def test_type(self, column, values, remedy, streaming):
        columns = {"prompt": ["a"], "chosen": [image()], "rejected": [image()], column: values}
        dataset = Dataset.from_dict(columns)
        with pytest.raises(TypeError) as error:
            check_columns(dataset.to_iterable_dataset() if streaming else dataset)
        assert str(error.value).startswith(f"`{column}` ")
        assert f'dataset.cast_column("{column}", {remedy})' in str(error.value)

    def test_remedy_helps(self, tmp_path):
        image().save(tmp_path / "a.png")
        dataset = Dataset.from_dict(
            {**dict.fromkeys(["chosen", "rejected"], [str(tmp_path / "a.png")]), "prompt": ["a"]}
        )
        for column in ("chosen", "rejected"):
            dataset = dataset.cast_column(column, Image())
        check_columns(dataset)

    @pytest.mark.parametrize(
        "references",
        [List(Image()), Sequence(Image()), [Image()], List(Image(decode=False)), List(Value("null")), Value("null")],
        ids=str,
    )
    def test_list_features(self, references):
        types = {**FEATURES, "references": references, "reference_subjects": List(Value("string"))}
        check_columns(Dataset.from_dict(dict.fromkeys(COLUMNS, []), features=Features(types)))

    def test_stream_without_features(self):
        check_columns(IterableDataset.from_generator(lambda: iter([{"other": 3}])))

    @pytest.mark.parametrize(
        ("other", "message"), [([pair()], "list"), (DatasetDict({"test": dataset_of(pair())}), r"dataset\['test'\]")]
    )
    def test_no_dataset(self, other, message):
        with pytest.raises(TypeError, match=message):
            check_columns(other)


class TestRow:
    @pytest.mark.parametrize(
        ("column", "part", "columns"), [*PROBLEMS.values(), *GARBAGE.values()], ids=[*PROBLEMS, *GARBAGE]
    )
    def test_problem(self, column, part, columns):
        problems = check_row(pair(**columns))
        assert len(problems) == 1
        assert problems[0].startswith(f"`{column}`")
        assert part in problems[0]

    @pytest.mark.parametrize("columns", VALID.values(), ids=VALID)
    def test_valid(self, columns):
        assert check_row(pair(**columns)) == []

    @pytest.mark.parametrize("row", [{}, None, [], "row", {"chosen": {}, "rejected": [], "subjects": 0}])
    def test_garbage(self, row):
        assert check_row(row)

    @pytest.mark.parametrize("column", COLUMNS)
    @pytest.mark.parametrize(
        "value", [0, -1.5, True, "x", b"x", [], [[]], [{}], {}, object(), ["x", 0, None], [image()]]
    )
    def test_raises_nothing(self, column, value):
        full = pair(references=[image()], reference_masks=[mask()], chosen_masks=[mask()], rejected_masks=[mask()])
        for row in (pair(), {**full, "subjects": ["cat"], "reference_subjects": ["cat"]}):
            assert all(sentence.startswith("`") for sentence in check_row({**row, column: value}))

    def test_all_problems_at_once(self):
        row = pair(prompt="", rejected=None, references=[image(), None], reference_masks=[mask(1)])
        columns = [sentence.split("`")[1] for sentence in check_row(row)]
        assert sorted(columns) == ["prompt", "reference_masks", "reference_masks", "references", "rejected"]

    def test_broken_image_says_nothing_of_its_masks(self):
        assert len(check_row(pair(chosen=BROKEN, chosen_masks=[mask(size=(1, 1))]))) == 1

    def test_report(self):
        report = inspect_row(
            pair(rejected=image("blue", (5, 7)), references=[image(size=(3, 2)), image()], chosen_masks=[None] * 2)
        )
        assert report.chosen_size == (6, 4)
        assert report.rejected_size == (5, 7)
        assert report.reference_sizes == [(3, 2), (6, 4)]
        assert not report.has_masks
        assert inspect_row(pair(chosen_masks=[None], rejected_masks=[mask()])).has_masks

    def test_decodes_each_image_once(self, monkeypatch):
        decoded = []
        original = PIL.Image.open
        monkeypatch.setattr(
            PIL.Image, "open", lambda *args, **kwargs: decoded.append(args) or original(*args, **kwargs)
        )
        picture, black = stored(image()), stored(mask(0))
        row = {"prompt": "a", "chosen": picture, "rejected": picture, "references": [picture, picture]}
        lists = dict.fromkeys(("reference_masks", "chosen_masks", "rejected_masks"), [black, None])
        assert inspect_row({**row, **lists}).problems == []
        assert len(decoded) == 7

    @pytest.mark.parametrize(
        ("rejected", "tie"),
        [
            (image(), True),
            (stored(image()), True),
            (image((255, 0, 0, 255), mode="RGBA"), True),
            (image((255, 0, 1)), False),
            (image(size=(4, 6)), False),
        ],
    )
    def test_tie(self, rejected, tie):
        assert is_tie(pair(rejected=rejected)) is tie
        assert inspect_row(pair(rejected=rejected)).tie is tie

    def test_streamed(self):
        assert check_streamed_row(pair(), 4).chosen_size == SIZE
        assert check_streamed_row(pair(rejected=image()), 4).tie
        with pytest.raises(ValueError, match=r"(?s)row 4 .*`prompt`.*row 4 .*`chosen`"):
            check_streamed_row(pair(prompt="", chosen=None), 4)


class TestValidate:
    @pytest.mark.parametrize(("column", "part", "columns"), PROBLEMS.values(), ids=PROBLEMS)
    def test_problem(self, column, part, columns):
        with pytest.raises(ValueError) as error:
            validate_dataset(dataset_of(pair(), pair(**columns), pair()))
        first, problem, last = str(error.value).split("\n")
        assert first.startswith("1 problem in")
        assert problem.startswith(f"row 1: `{column}`")
        assert part in problem
        assert last.startswith("Nothing was trained")

    @pytest.mark.parametrize("columns", VALID.values(), ids=VALID)
    def test_valid(self, columns):
        dataset = dataset_of(pair(**columns))
        checked, reports = validate_dataset(dataset)
        assert checked is dataset
        assert len(reports) == 1

    @pytest.mark.parametrize(
        "build", [Dataset.from_list, lambda rows: Dataset.from_dict({k: [r[k] for r in rows] for k in rows[0]})]
    )
    def test_inferred_features(self, build):
        # All rows None: the type is null. Lists of nothing but None, and empty ones: the type is a list of null.
        rows = [
            pair(
                references=[image()], chosen_masks=[None], rejected_masks=None, subjects=None, reference_subjects=[0]
            ),
            pair(references=[], chosen_masks=None, rejected_masks=None, subjects=None, reference_subjects=[]),
        ]
        _, reports = validate_dataset(build(rows))
        assert reports["reference_sizes"][:] == [[[6, 4]], []]
        assert reports["has_masks"][:] == [False, False]

    def test_columns_are_checked(self):
        with pytest.raises(TypeError, match="`chosen`"):
            validate_dataset(Dataset.from_dict({"prompt": ["a"], "chosen": ["a.png"], "rejected": [image()]}))

    def test_reports(self):
        masks = {"chosen_masks": [mask()], "rejected_masks": [None]}
        references = [image(size=(3, 2)), image(size=(8, 8))]
        dataset = dataset_of(
            pair(rejected=image("blue", (5, 7))), pair(**masks), pair(references=references)
        ).add_column("other", [1, 2, 3])
        checked, reports = validate_dataset(dataset)
        assert checked is dataset
        assert sorted(reports.column_names) == sorted(
            [
                *("row", "width", "height", "rejected_width", "rejected_height"),
                *("reference_sizes", "has_masks", "mask_shares", "digests", "content"),
            ]
        )
        assert len({*reports[0]["digests"]}) == 3
        assert reports.remove_columns(["digests", "content"])[0] == {
            "row": 0,
            "width": 6,
            "height": 4,
            "rejected_width": 5,
            "rejected_height": 7,
            "reference_sizes": [],
            "has_masks": False,
            "mask_shares": [],
        }
        assert reports["mask_shares"][1] == [1, 0]
        assert reports["has_masks"][:] == [False, True, False]
        assert reports["reference_sizes"][2] == [[3, 2], [8, 8]]

    def test_many_problems(self):
        rows = [pair(prompt="") for _ in range(14)]
        with pytest.raises(ValueError) as error:
            validate_dataset(dataset_of(*rows))
        lines = str(error.value).split("\n")
        assert lines[0].startswith("14 problems")
        assert [line.split(":")[0] for line in lines[1:11]] == [f"row {row}" for row in range(10)]
        assert lines[11] == "... and 4 more"
        assert len(lines) == 13

    def test_ties_are_problems(self):
        dataset = dataset_of(pair(), pair(rejected=image()), pair(prompt=""))
        with pytest.raises(ValueError) as error:
            validate_dataset(dataset)
        lines = str(error.value).split("\n")
        assert lines[0].startswith("2 problems")
        assert lines[1].startswith("row 1: `chosen` and `rejected` are the same picture")
        assert "ties='drop'" in lines[1]
        assert lines[2].startswith("row 2: `prompt`")

    def test_ties_dropped(self, caplog):
        rows = [pair(prompt=str(i), rejected=image() if i in (0, 2) else image("blue")) for i in range(5)]
        with caplog.at_level(logging.WARNING, logger="trl_focus"):
            checked, reports = validate_dataset(dataset_of(*rows), ties="drop")
        assert checked["prompt"][:] == ["1", "3", "4"]
        assert reports["row"][:] == [1, 3, 4]
        assert "Dropped 2 of 5 rows" in caplog.text
        assert "0, 2" in caplog.text

    def test_nothing_left(self):
        with pytest.raises(ValueError, match="no row is left"):
            validate_dataset(dataset_of(pair(rejected=image())), ties="drop")
        with pytest.raises(ValueError, match="no rows"):
            validate_dataset(dataset_of(pair()).select([]))

    def test_arguments(self):
        with pytest.raises(ValueError, match="'keep'"):
            validate_dataset(dataset_of(pair()), ties="keep")
        with pytest.raises(TypeError, match="stream"):
            validate_dataset(dataset_of(pair()).to_iterable_dataset())

    @pytest.mark.parametrize("format", ["numpy", "torch"])
    def test_formatted(self, format):
        dataset = dataset_of(pair(references=[image()])).with_format(format)
        checked, reports = validate_dataset(dataset)
        assert checked.format["type"] == format
        assert reports[0]["width"] == 6

    def test_rows_of_a_selection(self):
        dataset = dataset_of(pair(prompt=""), pair(prompt="b"), pair(prompt="c"))
        checked, reports = validate_dataset(dataset.select([2, 1]))
        assert checked["prompt"][:] == ["c", "b"]
        assert reports["row"][:] == [0, 1]

    def test_processes(self):
        rows = [pair(prompt="" if i == 3 else "a") for i in range(4)]
        assert validate_dataset(dataset_of(*rows[:3]), num_proc=2)[1]["row"][:] == [0, 1, 2]
        with pytest.raises(ValueError, match="row 3: `prompt`"):
            validate_dataset(dataset_of(*rows), num_proc=2)


class TestCache:
    @pytest.fixture
    def inspected(self, monkeypatch):
        calls = []
        monkeypatch.setattr(validation, "inspect_row", lambda row: calls.append(row["prompt"]) or inspect_row(row))
        return calls

    def on_disk(self, path, *rows):
        dataset_of(*rows).save_to_disk(path)
        return load_from_disk(path)

    def test_checked_once(self, tmp_path, inspected):
        dataset = self.on_disk(tmp_path, pair(), pair(references=[image()]), pair(rejected=image()))
        first = validate_dataset(dataset, ties="drop")
        assert len(inspected) == 3
        again = validate_dataset(load_from_disk(tmp_path), ties="drop")
        assert len(inspected) == 3
        assert again[1].to_list() == first[1].to_list()

    def test_another_release_checks_again(self, tmp_path, inspected, monkeypatch):
        dataset = self.on_disk(tmp_path, pair())
        validate_dataset(dataset)
        monkeypatch.setattr(validation, "__version__", "99")
        validate_dataset(dataset)
        assert len(inspected) == 2

    def test_images_are_not_copied(self, tmp_path):
        row = pair(chosen=NOISE, references=[NOISE, NOISE], reference_masks=[NOISE, None])
        dataset = self.on_disk(tmp_path, row)
        before = {file: file.stat().st_size for file in tmp_path.iterdir()}
        validate_dataset(dataset)
        written = {file: file.stat().st_size for file in tmp_path.iterdir() if file not in before}
        assert written
        assert sum(written.values()) < NOISE.width * NOISE.height

    def test_repaired_file(self, tmp_path):
        file = tmp_path / "a.png"
        file.write_text("no image")
        row = pair(chosen={"bytes": None, "path": str(file)})
        # `save_to_disk` would embed the file: a cached `map` keeps its path
        dataset = self.on_disk(tmp_path / "data", pair(), pair())
        dataset = dataset.map(lambda _: {"chosen": row["chosen"]}, features=dataset.features)
        assert dataset.cache_files
        with pytest.raises(ValueError, match=r"(?s)row 0: `chosen`.*row 1: `chosen`"):
            validate_dataset(dataset)
        image("green").save(file)
        assert len(validate_dataset(dataset)[1]) == 2
