# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Whole datasets. Here SAM fills its boxes and the detector knows colours, so that every answer is known."""

import datasets
import numpy as np
import PIL.Image
import pytest

from tests.fixtures.pairs import dataset_of
from trl_focus.data import check_row, mask_to_array
from trl_focus.errors import InputError
from trl_focus.masks import MaskSettings, add_masks
from trl_focus.masks.boxes import Found
from trl_focus.masks.segment import Outline
from trl_focus.masks.sheet import write_sheets
from trl_focus.pairs import make_pairs, target_and_corrupted


COLOURS = {"cat": (255, 0, 0), "dog": (0, 0, 255)}
SQUARE = (64, 64)
LEFT, RIGHT, TOP = (0, 16, 16, 48), (32, 0, 64, 32), (16, 0, 32, 16)


def scene(*subjects, size=(64, 48)):
    image = PIL.Image.new("RGB", size, "grey")
    for name, box in subjects:
        image.paste(COLOURS[name], box)
    return image


def pair(chosen, rejected=None, size=(64, 48), **columns):
    return {
        "prompt": "a cat",
        "chosen": scene(*chosen, size=size),
        "rejected": scene(*(rejected or chosen), size=(64, 64)),
        **columns,
    }


def fill(images, boxes, segmenter, batch_size):
    outlines = []
    for image, asked in zip(images, boxes, strict=True):
        outlines.append([])
        for left, top, right, bottom in asked:
            mask_HW = np.zeros((image.height, image.width), bool)
            mask_HW[round(top) : round(bottom), round(left) : round(right)] = True
            outlines[-1].append(Outline(mask_HW, 0.9))
    return outlines


def by_colour(images, names, detector, batch_size):
    """Boxes in the name's colour. A dog looks a little like a cat, and a cat less like a dog."""
    found = []
    for image, name in zip(images, names, strict=True):
        found.append([])
        for other, score in (("cat", 0.8 if name == "cat" else 0.1), ("dog", 0.7 if name == "dog" else 0.3)):
            cells = (np.asarray(image) == COLOURS[other]).all(axis=2)
            for left, top, right, bottom in (LEFT, RIGHT, TOP):
                if cells[top:bottom, left:right].all():
                    found[-1].append(Found((left, top, right, bottom), score))
    return found


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """Replaces the models; the images that the detector was shown."""
    shown = []

    def detect(images, *args):
        shown.extend(images)
        return by_colour(images, *args)

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("trl_focus.masks.annotate.detect", detect)
    monkeypatch.setattr("trl_focus.masks.judge.segment", fill)
    return shown


def box_of(mask):
    return None if mask is None else PIL.Image.fromarray(mask_to_array(mask) > 0.5).getbbox()


NAMES = {"subjects": ["cat", "dog"]}
BOTH = (("cat", LEFT), ("dog", RIGHT))


def test_by_name(seen):
    rows = [pair(BOTH, references=[scene(("dog", RIGHT)), scene(("cat", TOP))], reference_subjects=[1, 0], **NAMES)]
    kept, aside = add_masks(dataset_of(*rows))
    assert len(aside) == 0
    (row,) = kept
    for column in ("chosen_masks", "rejected_masks"):
        assert [box_of(mask) for mask in row[column]] == [LEFT, RIGHT]
    assert [box_of(mask) for mask in row["reference_masks"]] == [RIGHT, TOP]
    assert row["chosen_confidences"] == pytest.approx([0.8, 0.7])
    assert row["reference_confidences"] == pytest.approx([0.7, 0.8])
    assert row["row"] == 0 and row["problems"] == [] and row["prompt"] == "a cat"
    assert row["rejected_masks"][0].size == (64, 64)
    assert check_row(row) == []


def test_names_may_stand_with_the_references(seen):
    rows = [pair(BOTH, references=[scene(("dog", RIGHT)), scene(("cat", TOP))])]
    dataset = dataset_of(*rows).add_column("reference_subjects", [["dog", "cat"]])
    kept, _ = add_masks(dataset)
    assert [box_of(mask) for mask in kept[0]["chosen_masks"]] == [RIGHT, LEFT]


def test_what_pairs_are_to_be_made_of(seen, tmp_path):
    """Without `rejected`, as `trl-focus pairs corrupt` takes it."""
    shown = {"references": [scene(("cat", TOP)), scene(("dog", TOP))], "reference_subjects": [0, 1], **NAMES}
    rows = dataset_of(pair(BOTH, **shown), pair((("cat", LEFT),), **NAMES)).remove_columns("rejected")
    kept, aside = add_masks(rows)
    assert [box_of(mask) for mask in kept[0]["chosen_masks"]] == [LEFT, RIGHT]
    assert not [name for name in kept.column_names if name.startswith("rejected")]
    assert len(seen) == 2 + 2 * 2  # each reference for its name, each image for each name, and none twice
    assert aside["row"][:] == [1] and "`chosen`: 'dog' is not found" in aside[0]["problems"][0]
    for part in (kept, aside):
        assert write_sheets(part, tmp_path / "sheets", "train") == 1
    made = make_pairs(kept, "corrupt", target_and_corrupted(("colour",)), tmp_path / "out")
    assert made.pairs == 1


ASIDE = {
    "not found": (pair((("cat", LEFT),), **NAMES), "`chosen`: 'dog' is not found: what looks most like it has a confidence of 0.10"),
    "in rejected": (pair(BOTH, (("dog", RIGHT),), **NAMES), "`rejected`: 'cat' is not found: what looks most like it, with a confidence of 0.30, looks more l"),
    "two": (
        pair((*BOTH, ("dog", TOP)), **NAMES),
        "`chosen`: 2 places may show 'dog' (confidence 0.70, 0.70), and one is searched",
    ),
    "reference": (
        pair(BOTH, references=[scene(), scene(("dog", TOP))], **NAMES),
        "`references`[0]: 'cat' is not found: nothing looks like it",
    ),
    "no names": (pair(BOTH, subjects=[]), "`subjects` is empty, and subjects are searched by name"),
    "a problem of the row's own": (pair(BOTH, **NAMES) | {"prompt": ""}, "`prompt` is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASIDE)
def test_set_aside(name, seen):
    row, reason = ASIDE[name]
    kept, aside = add_masks(dataset_of(pair(BOTH, **NAMES), row))
    assert kept["row"][:] == [0] and aside["row"][:] == [1]
    assert any(problem.startswith(reason) for problem in aside[0]["problems"]), aside[0]["problems"]


def test_what_was_found_of_a_row_aside_can_be_looked_at(seen):
    _, aside = add_masks(dataset_of(pair((("cat", LEFT),), **NAMES)))
    assert [box_of(mask) for mask in aside[0]["chosen_masks"]] == [LEFT, None]
    assert aside[0]["chosen_confidences"] == pytest.approx([0.8, 0])


def test_absent(seen):
    rows = [
        pair(BOTH, (("cat", LEFT),), **NAMES),
        pair(BOTH, references=[scene(("cat", TOP)), scene()], **NAMES),
    ]
    kept, aside = add_masks(dataset_of(*rows), MaskSettings(missing="absent"))
    assert [box_of(mask) for mask in kept[0]["rejected_masks"]] == [LEFT, None] and check_row(kept[0]) == []
    assert aside["row"][:] == [1]  # a reference must show its subject


def test_confidence(seen):
    dataset = dataset_of(pair(BOTH, **NAMES))
    for least, number in ((0.7, 1), (0.71, 0)):
        kept, aside = add_masks(dataset, MaskSettings(confidence=least))
        assert len(kept) == number
    assert aside[0]["problems"][0] == (
        "`chosen`: 'dog' is not found: what looks most like it has a confidence of 0.70, below 0.71"
    )


@pytest.mark.parametrize(
    "outline, problem",
    [
        (lambda mask: Outline(np.zeros_like(mask), 0.9), "the mask of 'cat' is empty"),
        (lambda mask: Outline(mask, 0.15), "'cat' is outlined with a confidence of 0.15, below 0.2"),
        (lambda mask: Outline(np.ones_like(mask), 0.9), "the masks of 'cat' and 'dog' overlap by 100% of the smaller"),
    ],
    ids=["empty", "unsure", "overlap"],
)
def test_outlines_that_are_no_good(outline, problem, seen, monkeypatch):
    def segment(*args):
        return [[outline(each.mask_HW) for each in outlines] for outlines in fill(*args)]

    monkeypatch.setattr("trl_focus.masks.judge.segment", segment)
    dataset = dataset_of(pair(BOTH, **NAMES))
    kept, aside = add_masks(dataset)
    assert len(kept) == 0 and f"`chosen`: {problem}" in aside[0]["problems"]
    kept, _ = add_masks(dataset, MaskSettings(overlap=1.0))
    assert len(kept) == ("overlap" in problem)


def test_masks_that_are_there_are_kept(seen):
    own = PIL.Image.new("L", (64, 48))
    own.paste(255, TOP)
    dataset = dataset_of(pair(BOTH, chosen_masks=[own, None], **NAMES), pair(BOTH, **NAMES))
    kept, _ = add_masks(dataset)
    assert [box_of(mask) for mask in kept[0]["chosen_masks"]] == [TOP, None]
    assert kept[0]["chosen_confidences"] is None and kept[1]["chosen_confidences"] == pytest.approx([0.8, 0.7])
    assert [box_of(mask) for mask in kept[0]["rejected_masks"]] == [LEFT, RIGHT]
    assert len(seen) == 2 + 2 * 2


def test_rows_set_aside_can_be_tried_again(seen):
    own = PIL.Image.new("L", (64, 64), 255)
    kept, aside = add_masks(
        dataset_of(pair(BOTH, **NAMES), pair((("cat", LEFT),), rejected_masks=[own, own], **NAMES))
    )
    again, still = add_masks(aside)
    assert len(again) == 0 and still["problems"][:] == aside["problems"][:]
    again, _ = add_masks(aside, MaskSettings(missing="absent"))
    assert [box_of(mask) for mask in again[0]["chosen_masks"]] == [LEFT, None]
    assert [box_of(mask) for mask in again[0]["rejected_masks"]] == [(0, 0, 64, 64)] * 2  # these were given
    asked = len(seen)
    once_more, _ = add_masks(kept, MaskSettings(confidence=1.0))
    assert len(seen) == asked and once_more.to_list() == kept.to_list()


def test_cached(seen, tmp_path):
    dataset_of(*[pair(BOTH, **NAMES)] * 3).save_to_disk(tmp_path / "pairs")  # datasets in memory are not cached
    dataset = datasets.load_from_disk(tmp_path / "pairs")
    add_masks(dataset)
    asked = len(seen)
    add_masks(dataset)
    assert len(seen) == asked == 3 * 2 * 2
    add_masks(dataset, MaskSettings(confidence=0.5))
    assert len(seen) == 2 * asked


def test_batches_do_not_matter(seen):
    rows = [
        pair(BOTH, **NAMES),
        pair((("cat", LEFT),), **NAMES),
        pair(BOTH, references=[scene(("cat", TOP))] * 2, **NAMES),
    ]
    results = [add_masks(dataset_of(*rows), batch_size=size) for size in (1, 3)]
    for one, other in zip(*results, strict=True):
        assert (
            one["problems"][:] == other["problems"][:]
            and one["chosen_confidences"][:] == other["chosen_confidences"][:]
        )


def test_other_columns_stay(seen):
    dataset = dataset_of(pair(BOTH, **NAMES)).add_column("mine", [7])
    assert add_masks(dataset)[0]["mine"][:] == [7]


class TestByReference:
    """With a real, tiny DINOv2 in whose features nothing counts but colour."""

    @pytest.fixture
    def settings(self, models):
        return MaskSettings(by="reference", matcher=models["dinov2"], confidence=0.9)

    def test_finds_what_the_references_show(self, seen, settings):
        references = [scene(("dog", (0, 0, 64, 48))), scene(("cat", (0, 0, 64, 48)))]
        rows = [pair(BOTH, (("dog", LEFT), ("cat", RIGHT)), references=references, size=SQUARE)]
        kept, _ = add_masks(dataset_of(*rows), settings)
        assert [box_of(mask) for mask in kept[0]["chosen_masks"]] == [RIGHT, LEFT]
        assert [box_of(mask) for mask in kept[0]["rejected_masks"]] == [LEFT, RIGHT]
        assert kept[0]["chosen_confidences"] == pytest.approx([0.9, 0.9])  # SAM's, which is the lower
        assert [box_of(mask) for mask in kept[0]["reference_masks"]] == [(0, 0, 64, 48)] * 2
        assert not seen

    def test_by_masks_of_the_references(self, seen, settings):
        mask = PIL.Image.new("L", SQUARE)
        mask.paste(255, LEFT)
        rows = [
            pair(
                (("cat", RIGHT),), references=[scene(("cat", LEFT), size=SQUARE)], reference_masks=[mask], size=SQUARE
            )
        ]
        kept, _ = add_masks(dataset_of(*rows), settings)
        assert [box_of(mask) for mask in kept[0]["chosen_masks"]] == [RIGHT]

    def test_nothing_is_searched_where_nothing_lacks(self, seen, settings):
        mask = PIL.Image.new("L", SQUARE, 255)
        masked = pair((("cat", RIGHT),), chosen_masks=[mask], rejected_masks=[mask], references=[], size=SQUARE)
        searched = pair((("cat", RIGHT),), references=[scene(("cat", (0, 0, 64, 48)))], size=SQUARE)
        kept, _ = add_masks(dataset_of(masked, searched), settings)
        assert [box_of(row["chosen_masks"][0]) for row in kept] == [(0, 0, 64, 64), RIGHT]
        assert kept[0]["reference_masks"] is None and kept[0]["chosen_confidences"] is None

    def test_set_aside(self, seen, settings):
        cat = scene(("cat", (0, 0, 64, 48)))
        rows = [
            pair(BOTH, references=[], size=SQUARE),
            pair(BOTH, references=[cat], subjects=["cat", "dog"], reference_subjects=[0], size=SQUARE),
            pair((("dog", RIGHT),), references=[cat], size=SQUARE),
            pair((("cat", LEFT), ("cat", RIGHT)), references=[cat], size=SQUARE),
        ]
        kept, aside = add_masks(dataset_of(*rows), settings)
        reasons = [problems[0] for problems in aside["problems"]]
        assert len(kept) == 0
        assert reasons[0] == "`references` show 0 of 0 subjects, and subjects are searched by reference"
        assert reasons[1] == "`references` show 1 of 2 subjects, and subjects are searched by reference"
        assert reasons[2].startswith(
            "`chosen`: 'subject 0' is not found: what looks most like it has a confidence of 0."
        )
        assert reasons[3].startswith("`chosen`: 2 places may show 'subject 0' (confidence 1.00, 1.00)")


class TestArguments:
    def test_nothing_to_search_by(self):
        dataset = dataset_of(pair(BOTH))
        with pytest.raises(InputError, match="searched by name, and the dataset has no column `subjects`"):
            add_masks(dataset)
        with pytest.raises(InputError, match="searched by reference, and the dataset has no column `references`"):
            add_masks(dataset, MaskSettings(by="reference"))

    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"by": "eye"}, "`by` is 'eye': choose 'name' or 'reference'"),
            ({"missing": "guess"}, "`missing` is 'guess'"),
            ({"confidence": 2}, "`confidence` is 2: it lies between 0 and 1"),
            ({"overlap": -1}, "`overlap` is -1"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(InputError, match=message):
            MaskSettings(**settings)

    def test_defaults(self):
        assert MaskSettings().confidence == 0.2 and MaskSettings(by="reference").confidence == 0.5
