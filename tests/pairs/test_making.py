# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, List, Value, load_from_disk

from tests.fixtures.embedders import mean_colour
from trl_focus.data import FEATURES, load_preferences, validate_dataset
from trl_focus.evaluation import Instance, Item, Subject, subject_scorer
from trl_focus.pairs import (
    NoPairError,
    best_and_worst,
    make_pairs,
    target_and_corrupted,
    target_and_sample,
    weighted_judge,
)
from trl_focus.pairs.rows import item_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def plain(colour, size=(64, 64)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, colour)


def unknown(image, item):
    return None


JUDGE = weighted_judge([subject_scorer(mean_colour)], {"identity": 1.0}, unknown)


def draw(item, seed):
    """Red, more and more yellow with the seed: less and less like a red reference."""
    return plain((200, 40 * (seed % 5), 0))


def table(*rows) -> Dataset:
    names = [name for name in FEATURES if any(name in row for row in rows)]
    return Dataset.from_list(
        [{name: row.get(name) for name in names} for row in rows],
        features=Features({name: FEATURES[name] for name in names}),
    )


def row(**columns):
    return {"prompt": "a red thing", "references": [plain("red")], **columns}


class TestItems:
    def test_subjects(self):
        a, b, c = plain("red"), plain("lime"), plain("blue")
        source = row(references=[a, b, c], subjects=["x", "y"], reference_subjects=["y", "x", "y"])
        item = item_of(source, 7)
        assert (item.row, item.prompt) == (7, "a red thing") and item.references == (a, b, c)
        assert item.subjects == (Subject("x", (b,), (None,)), Subject("y", (a, c), (None, None)))

    def test_each_shows_its_own_by_default(self):
        item = item_of(row(references=[plain("red"), plain("blue")]), 0)
        assert [subject.name for subject in item.subjects] == ["1", "2"]

    def test_names_of_references(self):
        source = {**row(references=[plain("red"), plain("blue")]), "reference_subjects": ["cat", "dog"]}
        assert [subject.name for subject in item_of(source, 0).subjects] == ["cat", "dog"]

    def test_what_can_not_be(self):
        with pytest.raises(ValueError, match="has no `references`"):
            item_of({"prompt": "a"}, 0)
        with pytest.raises(ValueError, match="subject 'y' has no reference"):
            item_of(row(subjects=["x", "y"], reference_subjects=["x"]), 0)


class TestJudge:
    item = Item(0, "a", (), (Subject("a", (plain("red"),)),))

    def test_sum(self):
        def scorer(image, item, instances):
            return {"a": 2.0, "b": 3.0, "c": 100.0}

        found = weighted_judge([scorer], {"a": 1, "b": -0.5}, unknown)(plain("red"), self.item)
        assert found.total == 0.5 and found.scores["c"] == 100 and found.masks is None

    def test_score_that_is_not_finite(self):
        judge = weighted_judge([lambda *_: {"a": float("nan"), "b": 1.0}], {"a": 1, "b": 1}, unknown)
        with pytest.raises(ValueError, match="of an image, a is nan"):
            judge(plain("red"), self.item)
        found = weighted_judge([lambda *_: {"a": float("nan"), "b": 1.0}], {"b": 1}, unknown)(plain("red"), self.item)
        assert found.total == 1 and found.scores == {"b": 1}

    def test_score_that_is_not_there(self):
        judge = weighted_judge([lambda *_: {"a": 2.0}], {"a": 1, "leakage": -1}, unknown)
        assert judge(plain("red"), self.item).total == 2
        with pytest.raises(ValueError, match="no score b; it has a"):
            weighted_judge([lambda *_: {"a": 2.0}], {"b": 1}, unknown)(plain("red"), self.item)

    def test_image_without_its_subjects_is_the_worst(self):
        """And it is no reason to give up its row."""
        subjects = tuple(Subject(name, (plain(name),)) for name in ("red", "blue"))
        weights = {"instances/identity": 1, "instances/leakage": -0.5}

        def judge(*found):
            return weighted_judge([subject_scorer(mean_colour)], weights, lambda *_: found)(
                plain("red"), Item(0, "a", (), subjects)
            ).total

        one = Instance((0, 0, 64, 64), subject=0)
        assert judge(one) == pytest.approx(0.5 + 0.5) and judge() == 0
        assert judge(Instance((0, 0, 0, 0), subject=0)) == 0  # what is empty is nothing

    def test_masks(self):
        mask = np.ones((64, 64), np.float32)
        item = self.item._replace(subjects=self.item.subjects * 2)
        judge = weighted_judge([lambda *_: {"a": 1}], {"a": 1}, lambda *_: [Instance((0, 0, 64, 64), mask, 1)])
        first, second = judge(plain("red"), item).masks
        assert first is None and second is mask
        nothing = weighted_judge([lambda *_: {"a": 1}], {"a": 1}, lambda *_: [])
        assert nothing(plain("red"), item).masks == [None, None]  # both are absent, which is known


class TestBestAndWorst:
    def test_pair(self):
        source = row()
        made = best_and_worst(draw, JUDGE, 4, 0.05)(
            source, item_of(source, 0), 12
        )  # seeds 12 to 15, which is 2, 3, 4, 0
        assert made["chosen"].getpixel((0, 0)) == (200, 0, 0) and made["rejected"].getpixel((0, 0)) == (200, 160, 0)
        assert made["margin"] == pytest.approx(1 - 200 / np.hypot(200, 160), abs=1e-5)
        assert made["provenance"]["seeds"] == {"chosen": 15, "rejected": 14}
        assert made["provenance"]["scores"]["chosen"]["identity"] == pytest.approx(1)
        assert made["chosen_masks"] is None

    def test_margin(self):
        source = row()
        with pytest.raises(NoPairError, match="differ by 0.0194, less than the margin of 0.05"):
            best_and_worst(draw, JUDGE, 2, 0.05)(source, item_of(source, 0), 0)
        with pytest.raises(NoPairError, match="the same picture"):
            best_and_worst(lambda item, seed: plain("red"), JUDGE, 2, 0.0)(source, item_of(source, 0), 0)

    def test_masks_of_what_is_found(self):
        mask = np.zeros((64, 64), np.float32)
        mask[:32] = 1
        judge = weighted_judge(
            [subject_scorer(mean_colour)], {"identity": 1}, lambda *_: [Instance((0, 0, 64, 32), mask, 0)]
        )
        source = row()
        made = best_and_worst(draw, judge, 5, 0.05)(source, item_of(source, 0), 0)
        assert np.array_equal(made["chosen_masks"][0], 255 * mask) and len(made["rejected_masks"]) == 1


class TestTarget:
    def test_against_the_worst_sample(self):
        mask = PIL.Image.new("L", (64, 64), 255)
        source = row(chosen=plain("red"), chosen_masks=[mask])
        made = target_and_sample(draw, JUDGE, 3, 0.05)(source, item_of(source, 0), 0)
        assert made["chosen"].getpixel((0, 0)) == (255, 0, 0) and made["rejected"].getpixel((0, 0)) == (200, 80, 0)
        assert made["provenance"]["seeds"] == {"rejected": 2}
        assert made["chosen_masks"] is None  # masks of one image alone are no masks of a pair

    def test_that_is_no_better(self):
        source = row(chosen=plain("blue"))
        with pytest.raises(NoPairError, match="differ by -"):
            target_and_sample(draw, JUDGE, 1, 0.0)(source, item_of(source, 0), 0)
        with pytest.raises(ValueError, match="no image `chosen`"):
            target_and_sample(draw, JUDGE, 1, 0.0)(row(), item_of(row(), 0), 0)

    def test_corrupted(self):
        mask = PIL.Image.new("L", (64, 64))
        mask.paste(255, (16, 16, 48, 48))
        image = plain("gray")
        image.paste("red", (16, 16, 48, 48))
        source = row(chosen=image, chosen_masks=[mask], subjects=["box"])
        made = target_and_corrupted(("drop",))(source, item_of(source, 0), 5)
        assert np.abs(np.asarray(made["rejected"], float) - 128).max() <= 1
        assert made["rejected_masks"] == [None] and np.array_equal(made["chosen_masks"][0], mask)
        assert made["provenance"] == {"corruption": "drop", "subject": "box", "seed": 5} and made["margin"] is None
        for missing, message in (({"chosen": None}, "no image `chosen`"), ({"chosen_masks": None}, "`chosen_masks`")):
            with pytest.raises(ValueError, match=message):
                target_and_corrupted(("drop",))({**source, **missing}, item_of(source, 0), 5)


def read(folder) -> Dataset:
    return load_preferences(str(folder / "pairs"))


class TestBlocks:
    maker = staticmethod(best_and_worst(draw, JUDGE, 3, 0.05))

    def make(self, dataset, folder, maker=None, **kwargs):
        return make_pairs(dataset, "best-worst", maker or self.maker, folder, block_size=2, **kwargs)

    def test_pairs_can_be_trained_on(self, tmp_path):
        made = self.make(
            table(*[row(prompt=f"a {i}") for i in range(5)]), tmp_path, seeds_per_row=3, seed=0, about={"lora": "a"}
        )
        assert made == (5, [], [])
        pairs = read(tmp_path)
        kept, _ = validate_dataset(pairs)
        assert len(kept) == 5 and pairs["prompt"] == [f"a {i}" for i in range(5)]
        assert pairs["source_row"] == [*range(5)] and {*pairs["kind"]} == {"best-worst"}
        said = json.loads(pairs[1]["provenance"])
        assert said["lora"] == "a" and said["seeds"] == {"chosen": 5, "rejected": 4}  # of 3, 4 and 5
        assert pairs[1]["chosen"].getpixel((0, 0)) == (200, 0, 0)
        assert pairs[1]["subjects"] is None and pairs[1]["reference_subjects"] == [0]

    def test_bad_rows_are_named_and_the_rest_goes_on(self, tmp_path):
        rows = [
            row(),
            row(prompt=""),
            row(references=[]),
            row(prompt="alike"),
            row(references=[{"bytes": b"no image", "path": None}]),
            row(),
        ]

        def make(source, item, seed):
            if source["prompt"] == "alike":
                raise NoPairError("they are alike")
            return self.maker(source, item, 0)

        made = self.make(table(*rows), tmp_path, make)
        assert made.pairs == 2 and made.without == [(3, "they are alike")]
        assert [number for number, _ in made.problems] == [1, 2, 4]
        assert "`prompt` is empty" in made.problems[0][1] and "`references`[0] can't be decoded" in made.problems[2][1]
        assert read(tmp_path)["source_row"] == [0, 5]

    def test_goes_on_where_it_was_stopped(self, tmp_path):
        dataset = table(*[row(prompt=f"a {i}") for i in range(5)])
        self.make(dataset, tmp_path / "whole", seeds_per_row=3)

        def stopped(source, item, seed):
            if source["prompt"] == "a 3":
                raise KeyboardInterrupt
            return self.maker(source, item, seed)

        with pytest.raises(KeyboardInterrupt):
            self.make(dataset, tmp_path / "parts", stopped, seeds_per_row=3)
        seen = []

        def counted(source, item, seed):
            seen.append(item.row)
            return self.maker(source, item, seed)

        made = self.make(dataset, tmp_path / "parts", counted, seeds_per_row=3)
        assert made.pairs == 5 and seen == [2, 3, 4]
        assert self.make(dataset, tmp_path / "parts", counted, seeds_per_row=3) == made and len(seen) == 3
        assert read(tmp_path / "parts").to_list() == read(tmp_path / "whole").to_list()

    def test_parts_of_several_processes(self, tmp_path):
        dataset = table(*[row(prompt=f"a {i}") for i in range(5)])
        self.make(dataset, tmp_path / "whole", seeds_per_row=3)
        made = [self.make(dataset, tmp_path / "parts", seeds_per_row=3, part=(number, 2)) for number in range(2)]
        assert [each.pairs for each in made] == [3, 2]
        assert read(tmp_path / "parts").to_list() == read(tmp_path / "whole").to_list()

    def test_images_that_are_files(self, tmp_path):
        plain("red").save(tmp_path / "ref.png")
        dataset = table(row(references=[{"bytes": None, "path": str(tmp_path / "ref.png")}]))
        assert self.make(dataset, tmp_path / "out").pairs == 1
        (tmp_path / "ref.png").unlink()
        assert read(tmp_path / "out")[0]["references"][0].getpixel((0, 0)) == (255, 0, 0)

    def test_names_of_references_are_kept(self, tmp_path):
        source = {"prompt": "a", "references": [plain("red")] * 2, "reference_subjects": ["cat", "dog"]}
        features = Features({**FEATURES, "reference_subjects": List(Value("string"))})
        dataset = Dataset.from_list([source], Features({name: features[name] for name in source}))
        assert self.make(dataset, tmp_path).pairs == 1
        pair = read(tmp_path)[0]
        assert pair["subjects"] == ["cat", "dog"] and pair["reference_subjects"] == [0, 1]

    def test_nothing_comes_of_it(self, tmp_path):
        assert self.make(table(row(prompt="")), tmp_path).pairs == 0
        assert not [*(tmp_path / "pairs").iterdir()]

    def test_pair_that_training_would_refuse(self, tmp_path):
        def make(source, item, seed):
            return {"chosen": plain("red"), "rejected": plain("blue" if seed else "red"), "provenance": {}}

        def unfit(source, item, seed):
            return {**make(source, item, 1), "chosen_masks": [None, None]}

        made = self.make(table(row(), row()), tmp_path / "ties", make, seeds_per_row=1)
        assert made.pairs == 1 and "the same picture" in dict(made.problems)[0]
        assert "`chosen_masks` has length 2" in self.make(table(row()), tmp_path / "masks", unfit).problems[0][1]

    def test_masks_go_through(self, tmp_path):
        mask, image = PIL.Image.new("L", (64, 64)), plain("gray")
        mask.paste(255, (16, 16, 48, 48))
        image.paste("red", (16, 16, 48, 48))
        source = row(chosen=image, chosen_masks=[mask], reference_masks=[PIL.Image.new("L", (64, 64), 255)])
        dataset = table(source)
        dataset.save_to_disk(tmp_path / "source")
        made = self.make(load_from_disk(tmp_path / "source"), tmp_path, target_and_corrupted(("colour", "drop")))
        assert made.pairs == 1
        pair = read(tmp_path)[0]
        validate_dataset(read(tmp_path))
        assert np.array_equal(pair["chosen"], image) and np.array_equal(pair["chosen_masks"][0], mask)
        assert len(pair["reference_masks"]) == 1 and pair["margin"] is None
