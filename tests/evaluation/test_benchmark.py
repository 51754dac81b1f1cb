# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from trl_focus.errors import InputError
from trl_focus.evaluation.benchmark import Item, Subject, open_image, open_mask, read_benchmark


@pytest.fixture
def folder(tmp_path):
    """As UNO lays DreamBench out, beside its file."""
    for name in ("cat/00", "cat/02", "dog/01", "dog/03", "dog/04"):
        path = tmp_path / "dreambooth" / "dataset" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 6), "red").save(path)
    (tmp_path / "dreambooth" / "dataset" / "cat" / "license.txt").write_text("free")
    return tmp_path


CAT, DOG = "./dreambooth/dataset/cat/02.jpg", "./dreambooth/dataset/dog/01.jpg"


def write(folder: Path, *entries) -> Path:
    path = folder / "benchmark.json"
    path.write_text(json.dumps(entries))
    return path


def test_as_uno_publishes_it(folder):
    path = write(folder, {"prompt": "a cat and a dog in the jungle", "image_paths": [CAT, DOG]})
    cat, dog = (folder / "dreambooth" / "dataset" / name for name in ("cat", "dog"))
    (item,), problems, unread = read_benchmark(path)
    assert problems == unread == []
    subjects = (Subject("1", (cat / "02.jpg",), (None,)), Subject("2", (dog / "01.jpg",), (None,)))
    assert item == Item(0, "a cat and a dog in the jungle", (cat / "02.jpg", dog / "01.jpg"), subjects)

    (item,), _, _ = read_benchmark(path, photographs_from_folders=True)
    assert item.subjects[0].photographs == (cat / "00.jpg", cat / "02.jpg")
    assert item.subjects[1].photographs == (dog / "01.jpg", dog / "03.jpg", dog / "04.jpg")


def test_our_fields(folder):
    mask = PIL.Image.new("L", (8, 6))
    mask.paste(255, (2, 2, 4, 4))
    mask.save(folder / "mask.png")
    entry = {
        "prompt": "two",
        "image_paths": [CAT, DOG, CAT],
        "subjects": ["cat", "dog", "cat"],
        "photographs": [[CAT], [DOG, CAT]],
        "reference_masks": ["mask.png", None, None],
        "boxes": [[0, 0, 0.5, 1], None],
        "image_tgt_path": "what others have",
    }
    (item,), problems, unread = read_benchmark(write(folder, entry), photographs_from_folders=True)
    assert problems == [] and unread == ["image_tgt_path"]
    cat, dog = item.subjects
    assert (cat.name, dog.name) == ("cat", "dog")
    assert cat.references == (item.references[0], item.references[2]) and dog.references == (item.references[1],)
    assert cat.masks == (folder / "mask.png", None) and dog.masks == (None,)
    assert (
        cat.photographs == (item.references[0],) and dog.photographs == item.references[1::-1]
    )  # and not the folder's
    assert cat.box == (0, 0, 0.5, 1) and dog.box is None


def test_root(folder, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("elsewhere"), {"prompt": "a", "image_paths": [CAT]})
    with pytest.raises(InputError, match="is not a file"):
        read_benchmark(path)
    assert len(read_benchmark(path, folder).items) == 1
    assert len(read_benchmark(path, f"{folder}/dreambooth/..").items) == 1


def test_group(folder):
    entries = [
        {"prompt": prompt, "image_paths": paths} for prompt, paths in (("a", [CAT]), ("b", [CAT]), ("c", [DOG]))
    ]
    a, b, c = read_benchmark(write(folder, *entries)).items
    assert a.group == b.group != c.group
    image = PIL.Image.new("RGB", (1, 1))
    subjects = (Subject("1", (image,)),)
    assert Item(3, "a", (image,), subjects).group != Item(4, "a", (image,), subjects).group


def test_a_group_has_no_order_and_knows_a_subject_by_all_of_its_photographs(folder):
    paths = [[CAT, DOG], [DOG, CAT], [CAT.replace("02", "00"), DOG]]
    written = write(folder, *({"prompt": "a", "image_paths": each} for each in paths))
    one, turned, other = read_benchmark(written).items
    assert one.group == turned.group != other.group
    assert len({item.group for item in read_benchmark(written, photographs_from_folders=True).items}) == 1


def test_masks_beside_references_are_no_photographs(folder):
    cat = Path(CAT)
    PIL.Image.new("L", (8, 6), 255).save(folder / cat.with_name("02-mask.png"))
    entry = {"prompt": "a", "image_paths": [CAT], "reference_masks": [str(cat.with_name("02-mask.png"))]}
    other = {"prompt": "b", "image_paths": [CAT]}
    for item in read_benchmark(write(folder, entry, other), photographs_from_folders=True).items:
        assert [path.name for path in item.subjects[0].photographs] == ["00.jpg", "02.jpg"]


def test_a_relative_root_is_not_left(folder, monkeypatch):
    path = write(folder, {"prompt": "a", "image_paths": ["../cat/02.jpg"]})
    monkeypatch.chdir(folder / "dreambooth" / "dataset" / "dog")
    shutil.copy(path, "here.json")
    for given in ((path, "."), ("here.json",)):
        with pytest.raises(InputError, match="leads out of"):
            read_benchmark(*given)


BROKEN = {
    "no dictionary": ("a cat", "of type str"),
    "no prompt": ({"image_paths": [CAT]}, "`prompt` is missing"),
    "empty prompt": ({"prompt": " ", "image_paths": [CAT]}, "`prompt` is missing"),
    "no references": ({"prompt": "a", "image_paths": []}, "no subject to compare"),
    "half a character": ({"prompt": "a \ud83d", "image_paths": [CAT]}, "surrogates not allowed"),
    "path and no list": ({"prompt": "a", "image_paths": CAT}, "`image_paths` is of type str"),
    "missing image": ({"prompt": "a", "image_paths": [CAT, "no.jpg"]}, "`image_paths`[1] is 'no.jpg'"),
    "no image": ({"prompt": "a", "image_paths": ["dreambooth/dataset/cat/license.txt"]}, "not an image file"),
    "a folder": ({"prompt": "a", "image_paths": ["dreambooth"]}, "is not a file"),
    "leads out": ({"prompt": "a", "image_paths": ["../cat.jpg"]}, "leads out of"),
    "absolute": ({"prompt": "a", "image_paths": ["/etc/cat.jpg"]}, "leads out of"),
    "a number": ({"prompt": "a", "image_paths": [3]}, "`image_paths`[0] is 3, not a path"),
    "names": ({"prompt": "a", "image_paths": [CAT], "subjects": ["a", "b"]}, "2 entries, and there are 1 reference"),
    "names of numbers": ({"prompt": "a", "image_paths": [CAT], "subjects": [1]}, "give strings"),
    "photographs": ({"prompt": "a", "image_paths": [CAT], "photographs": [CAT]}, "not a list of paths"),
    "missing photograph": ({"prompt": "a", "image_paths": [CAT], "photographs": [["x.png"]]}, "`photographs`[0][0]"),
    "missing mask": ({"prompt": "a", "image_paths": [CAT], "reference_masks": ["x.png"]}, "`reference_masks`[0]"),
    "mask of another size": ({"prompt": "a", "image_paths": [CAT], "reference_masks": ["big.png"]}, "16x16"),
    "black mask": ({"prompt": "a", "image_paths": [CAT], "reference_masks": ["black.png"]}, "is nowhere"),
    "transparent": ({"prompt": "a", "image_paths": ["clear.png"]}, "transparent pixels"),
    "16 bits": ({"prompt": "a", "image_paths": ["deep.png"]}, "8 bits a channel"),
    "box in pixels": ({"prompt": "a", "image_paths": [CAT], "boxes": [[0, 0, 100, 50]]}, "as shares of width"),
    "box inside out": ({"prompt": "a", "image_paths": [CAT], "boxes": [[0.5, 0, 0.4, 1]]}, "left < right"),
    "box of text": ({"prompt": "a", "image_paths": [CAT], "boxes": ["left"]}, "`boxes`[0] is 'left'"),
    "boxes of another number": (
        {"prompt": "a", "image_paths": [CAT], "boxes": []},
        "0 entries, and there are 1 subject",
    ),
}


@pytest.mark.parametrize("entry, message", BROKEN.values(), ids=BROKEN)
def test_broken_entry_is_named_and_the_rest_goes_on(entry, message, folder):
    PIL.Image.new("L", (16, 16), 255).save(folder / "big.png")
    PIL.Image.new("L", (8, 6)).save(folder / "black.png")
    PIL.Image.new("RGBA", (8, 6)).save(folder / "clear.png")
    PIL.Image.fromarray(np.zeros((6, 8), np.uint16)).save(folder / "deep.png")
    good = {"prompt": "a", "image_paths": [CAT]}
    items, problems, _ = read_benchmark(write(folder, good, entry, good))
    assert [item.row for item in items] == [0, 2]
    ((row, problem),) = problems
    assert row == 1 and message in problem
    with pytest.raises(InputError, match="no entry of .* can be used. The first: row 0: "):
        read_benchmark(write(folder, entry))


@pytest.mark.parametrize(
    "text, message",
    [("{", "is no JSON"), ("{}", "no list of entries"), ("[]", "no list of entries"), ("\xff", "no JSON")],
)
def test_broken_file(text, message, tmp_path):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        read_benchmark(tmp_path / "a.json")


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="can't be read: No such file"):
        read_benchmark(tmp_path / "a.json")


def test_images_and_masks_from_memory():
    assert open_image(PIL.Image.new("L", (2, 2))).mode == "RGB"
    assert open_mask(PIL.Image.new("1", (2, 3), 1), (2, 3)).shape == (3, 2)
