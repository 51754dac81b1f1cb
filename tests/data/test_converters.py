# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import io
import pickle

import PIL.Image
import pytest
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, load_from_disk

from trl_focus.data import FEATURES, check_columns, validate_dataset
from trl_focus.data.converters import from_folder, from_pick_a_pic


def image_bytes(color, format="JPEG"):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 8), color).save(buffer, format, comment=color)
    return buffer.getvalue()


RED, BLUE = image_bytes("red"), image_bytes("blue")


def vote(label_0, caption="a cat", **columns):
    return {"jpg_0": RED, "jpg_1": BLUE, "label_0": label_0, "caption": caption, **columns}


def as_bytes(rows):
    return Dataset.from_list(rows)


def as_images(rows):
    return as_bytes(rows).cast_column("jpg_0", Image()).cast_column("jpg_1", Image())


def as_stream(rows):
    return as_bytes(rows).to_iterable_dataset()


def as_image_stream(rows):
    return as_images(rows).to_iterable_dataset()


def as_stream_without_features(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


STREAMS = [as_stream, as_image_stream, as_stream_without_features]
every_source = pytest.mark.parametrize("source", [as_bytes, as_images, *STREAMS])
every_stream = pytest.mark.parametrize("source", STREAMS)


def stored_rows(dataset):
    """Rows with the images as they are stored."""
    if isinstance(dataset, IterableDataset):
        return list(dataset.decode(False))
    return dataset.with_format("arrow")[:].to_pylist()


class TestPickAPic:
    @every_source
    def test_pairs(self, source):
        rows = [vote(1.0, "first"), vote(0.0, "second")]
        pairs = from_pick_a_pic(source([{**row, "ranking_id": 3} for row in rows]))
        assert pairs.features == Features({name: FEATURES[name] for name in ("prompt", "chosen", "rejected")})
        first, second = stored_rows(pairs)
        red, blue = {"bytes": RED, "path": None}, {"bytes": BLUE, "path": None}
        assert first == {"prompt": "first", "chosen": red, "rejected": blue}
        assert second == {"prompt": "second", "chosen": blue, "rejected": red}

    @every_source
    def test_images_are_read(self, source):
        (row,) = from_pick_a_pic(source([vote(1)]))
        assert row["chosen"].size == (16, 8)
        assert row["chosen"].getpixel((0, 0))[0] > 200

    @every_source
    def test_images_are_not_decoded(self, source):
        pairs = from_pick_a_pic(source([vote(1, jpg_0=b"no image")]))
        assert stored_rows(pairs)[0]["chosen"]["bytes"] == b"no image"

    def test_result_is_valid(self):
        checked, _ = validate_dataset(from_pick_a_pic(as_bytes([vote(1.0), vote(0.0)])))
        assert len(checked) == 2

    def test_cached_with_the_dataset(self, tmp_path):
        as_bytes([vote(1.0), vote(0.5), vote(0.0)]).save_to_disk(tmp_path)
        pairs = [from_pick_a_pic(load_from_disk(tmp_path), ties="drop") for _ in range(2)]
        assert pairs[0].cache_files
        assert pairs[0].cache_files == pairs[1].cache_files

    def test_stream_travels_to_workers(self):
        pairs = from_pick_a_pic(as_stream([vote(1.0)]))
        assert len(list(pickle.loads(pickle.dumps(pairs)))) == 1

    TIES = {
        "label": {"label_0": 0.5},
        "both labels": {"label_0": 0.5, "label_1": 0.5},
        "not asked": {"label_0": 1.0, "has_label": False},
        "null": {"label_0": None},
    }

    @every_source
    @pytest.mark.parametrize("tie", TIES.values(), ids=TIES)
    def test_ties(self, source, tie):
        others = {"label_1": 0.0, "has_label": True}
        others = {name: others[name] for name in tie if name in others}
        rows = [vote(1.0, "a", **others), vote(**{**others, **tie}), vote(1.0, "c", **others)]
        assert [row["prompt"] for row in from_pick_a_pic(source(rows), ties="drop")] == ["a", "c"]
        with pytest.raises(ValueError, match=r"(row|rows) 1\b.*ties='drop'"):
            list(from_pick_a_pic(source(rows)))

    def test_names_all_ties(self):
        rows = [vote(0.5 if row % 2 else 1.0) for row in range(30)]
        with pytest.raises(ValueError, match="15 of 30 rows are ties.*1, 3, 5, .* and 5 more"):
            from_pick_a_pic(as_bytes(rows))

    @every_stream
    def test_stream_is_read_up_to_the_tie(self, source):
        stream = iter(from_pick_a_pic(source([vote(1.0, "a"), vote(0.5)])))
        assert next(stream)["prompt"] == "a"
        with pytest.raises(ValueError, match="row 1 is a tie"):
            next(stream)

    @every_source
    @pytest.mark.parametrize("ties", ["error", "drop"])
    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ({"label_0": 0.7}, "row 2: `label_0` is 0.7"),
            ({"label_0": float("nan")}, "row 2: `label_0` is nan"),
            ({"label_0": 1.0, "label_1": 1.0}, "row 2: `label_0` is 1.0 and `label_1` 1.0"),
        ],
    )
    def test_other_labels(self, source, ties, labels, message):
        good = {"label_0": 1.0, "label_1": 0.0}
        good = {name: good[name] for name in labels}
        with pytest.raises(ValueError, match=message):
            list(from_pick_a_pic(source([vote(**good), vote(**good), vote(**labels)]), ties=ties))

    @every_source
    def test_missing_columns(self, source):
        rows = [{name: value for name, value in vote(1.0).items() if name not in ("caption", "label_0")}]
        with pytest.raises(
            ValueError, match="lacks Pick-a-Pic's columns 'caption', 'label_0'; it has 'jpg_0', 'jpg_1'"
        ):
            from_pick_a_pic(source(rows))

    def test_nothing_left(self):
        with pytest.raises(ValueError, match="no row"):
            from_pick_a_pic(as_bytes([vote(0.5)]), ties="drop")
        with pytest.raises(ValueError, match="no row"):
            from_pick_a_pic(as_bytes([vote(0.5)]).select([]), ties="drop")
        with pytest.raises(ValueError, match="lacks"):
            from_pick_a_pic(as_stream_without_features([]))

    def test_arguments(self):
        with pytest.raises(ValueError, match="'keep'"):
            from_pick_a_pic(as_bytes([vote(1)]), ties="keep")
        with pytest.raises(TypeError, match="splits"):
            from_pick_a_pic(DatasetDict({"train": as_bytes([vote(1)])}))


class TestFolder:
    @pytest.fixture
    def root(self, tmp_path):
        for name in ("b", "a.1"):
            self.write(tmp_path / "prompts" / f"{name}.txt", f"a photo of {name}\n")
            self.write(tmp_path / "chosen" / f"{name}.png", (6, 4))
            self.write(tmp_path / "rejected" / f"{name}.jpg", (5, 7))
        return tmp_path

    def write(self, file, content=(6, 4), color=255):
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            file.write_text(content, encoding="utf-8")
        else:
            PIL.Image.new("L", content, color).save(file, file.suffix.lower()[1:].replace("jpg", "jpeg"))

    def test_pairs(self, root):
        dataset = from_folder(root)
        assert dataset.column_names == ["prompt", "chosen", "rejected"]
        check_columns(dataset)
        assert dataset["prompt"][:] == ["a photo of a.1", "a photo of b"]
        assert dataset[1]["chosen"].size == (6, 4)
        assert dataset[1]["rejected"].size == (5, 7)

    def test_images_are_paths(self, root, monkeypatch):
        monkeypatch.chdir(root.parent)
        dataset = from_folder(root.name)
        monkeypatch.chdir("/")
        stored = dataset.with_format("arrow")[:].to_pylist()[0]["chosen"]
        assert stored == {"bytes": None, "path": str(root / "chosen" / "a.1.png")}
        assert dataset[0]["chosen"].size == (6, 4)

    def test_lists(self, root):
        for name in ("10.png", "02.webp", "2.BMP"):
            self.write(root / "references" / "b" / name, (int(name.split(".")[0]), 4))
        self.write(root / "references" / "b" / ".DS_Store", "hidden")
        self.write(root / "references" / ".DS_Store", "hidden")
        for i in range(3):
            self.write(root / "reference_masks" / "b" / f"{i}.png", ((2, 10, 2)[i], 4))
            self.write(root / "chosen_masks" / "b" / f"{i}.png", (6, 4), color=0)
        (root / "chosen_masks" / "a.1").mkdir()
        dataset = from_folder(root)
        assert dataset.features == Features({name: FEATURES[name] for name in dataset.features})
        assert "rejected_masks" not in dataset.features
        first, second = dataset
        assert first["references"] is first["reference_masks"] is first["chosen_masks"] is None
        assert [image.width for image in second["references"]] == [2, 10, 2]
        assert second["references"][0].format == "WEBP"
        _, reports = validate_dataset(dataset)
        assert reports["reference_sizes"][:] == [[], [[2, 4], [10, 4], [2, 4]]]

    def test_prompt_with_byte_order_mark(self, root):
        (root / "prompts" / "b.txt").write_bytes("﻿café".encode())
        assert from_folder(root)["prompt"][1] == "café"

    def test_prompt_encoding(self, root):
        (root / "prompts" / "b.txt").write_bytes("café".encode("latin-1"))
        with pytest.raises(ValueError, match=r"b\.txt is not UTF-8"):
            from_folder(root)

    @pytest.mark.parametrize("folder", ["chosen", "rejected", "prompts"])
    def test_folder_missing(self, root, folder):
        (root / folder).rename(root / "other")
        with pytest.raises(ValueError, match=f"missing: '.*{folder}'$"):
            from_folder(root)

    def test_no_pairs(self, tmp_path):
        for folder in ("chosen", "rejected", "prompts"):
            (tmp_path / folder).mkdir()
        with pytest.raises(ValueError, match="no pairs"):
            from_folder(tmp_path)

    @pytest.mark.parametrize("file", ["chosen/b.png", "rejected/b.jpg", "prompts/b.txt"])
    def test_incomplete_pair(self, root, file):
        (root / file).unlink()
        with pytest.raises(ValueError, match=f"no file for '{file.split('.')[0]}'"):
            from_folder(root)

    @pytest.mark.parametrize("folder", ["chosen", "rejected"])
    def test_two_files_of_one_name(self, root, folder):
        self.write(root / folder / "b.bmp")
        with pytest.raises(ValueError, match=rf"{folder}/b\.bmp and .*{folder}/b\.(png|jpg) have one name"):
            from_folder(root)

    @pytest.mark.parametrize(
        "file",
        [
            "chosen/b.txt",
            "chosen/sub/b.png",
            "prompts/b.md",
            "references/c/0.png",
            "references/b.png",
            "chosen_masks/c/0.png",
            "rejected_masks/b/0.npy",
            "reference_masks/b/sub/0.png",
        ],
    )
    def test_stray_file(self, root, file):
        self.write(root / file, "content")
        stray = file.replace("/0.png", "").replace("/sub/b.png", "/sub")
        with pytest.raises(ValueError, match=f"{stray} (does not belong there|belongs to no pair)"):
            from_folder(root)
