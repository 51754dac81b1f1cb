# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""`trl-focus validate`: what it says of good datasets, and of many that are broken."""

import subprocess
import sys

import datasets
import pytest

from tests.fixtures.broken import BROKEN, mask, pair, picture, table
from tests.fixtures.pairs import make_pairs
from trl_focus.cli import main
from trl_focus.data import load_preferences, validate_dataset
from trl_focus.data.inspection import inspect_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pairs").mkdir()
    return tmp_path / "pairs"


def test_they_are_many():
    assert sum(each.code == 2 for each in BROKEN.values()) >= 40


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_broken(broken, folder, capsys):
    broken.build(folder)
    assert main(["validate", str(folder), *broken.arguments]) == broken.code
    out, err = capsys.readouterr()
    assert broken.message in flat(out + err)
    assert "Traceback" not in out + err


# What a stream reads row by row; the others differ in what is asked for, or in how a stream of them begins
STREAMED = ("empty prompt", "0 bytes", "decompression bomb", "tie", "other aspect ratio", "mask of another size",
            "path to elsewhere", "URL", "link to elsewhere", "the same pair twice", "transparent",
            "rows elsewhere", "saved rows elsewhere")  # fmt: skip


@pytest.mark.parametrize("name", STREAMED)
def test_broken_stream(name, folder, capsys):
    broken = BROKEN[name]
    broken.build(folder)
    assert main(["validate", str(folder), "--streaming", *broken.arguments]) == broken.code
    assert broken.message in flat("".join(capsys.readouterr()))


REFUSED_BY_ROWS = [name for name, each in BROKEN.items() if each.code == 2 and each.message.startswith("row 1:")]


@pytest.mark.parametrize("name", [name for name in REFUSED_BY_ROWS if name != "other aspect ratio"])
def test_training_refuses_the_same(name, folder):
    BROKEN[name].build(folder)
    with pytest.raises(ValueError) as error:
        validate_dataset(load_preferences(str(folder)))
    assert BROKEN[name].message in flat(str(error.value))


@pytest.mark.parametrize("name", ["no such folder", "tie", "the same pair twice"])
def test_exit_code(name, folder):
    broken = BROKEN[name]
    broken.build(folder)
    command = [sys.executable, "-m", "trl_focus", "validate", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == broken.code
    assert broken.message in flat(done.stdout + done.stderr)
    assert "Traceback" not in done.stderr


def test_every_problem_is_told(folder, capsys):
    table(*(pair(prompt="", chosen=None) for _ in range(15))).save_to_disk(folder)
    assert main(["validate", str(folder)]) == 2
    out = capsys.readouterr().out
    assert out.count("`prompt` is empty") == out.count("`chosen` is missing") == 15
    assert "30 problems: training would refuse these pairs." in out


@pytest.mark.parametrize("streaming", [False, True])
def test_summary(streaming):
    rows = [
        pair(prompt="one", references=[picture(), picture("green")]),
        pair(prompt="two", chosen=picture(size=(64, 48)), rejected=picture("blue", (64, 48))),
        pair(prompt="three", rejected=picture()),
        pair(prompt="four", chosen_masks=[mask(), None], rejected_masks=[mask(51), mask(0)], subjects=["cat", "dog"]),
        pair(prompt="one", references=[picture(), picture("green")]),
    ]
    dataset = table(*rows)
    found = inspect_dataset(dataset.to_iterable_dataset() if streaming else dataset, ties="drop", resolution=64)
    assert found.problems == []
    assert found.summary == {
        "rows": "5",
        "width of chosen": "32 to 64, median 32",
        "height of chosen": "24 to 48, median 24",
        "layouts at 64": "2, most often 80x48",
        "references": "0 (3 rows), 2 (2 rows)",
        "rows with masks": "1",
        "masks": "4, 2 of an absent subject",
        "area of a subject": "20.0% to 100.0%, median 60.0%",
        "ties": "1",
        "exact duplicates": "1",
    }
    assert found.warnings[0] == "rows 0, 4 are the same pair"


def test_references_tell_pairs_apart():
    rows = [pair(references=[picture()]), pair(references=[picture("green")]), pair(references=[])]
    assert inspect_dataset(table(*rows)).warnings == []


def test_a_file_that_is_repaired_is_read_again(tmp_path):
    make_pairs(2).save_to_disk(tmp_path / "pairs")
    dataset = datasets.load_from_disk(tmp_path / "pairs")
    (tmp_path / "a.png").write_bytes(b"no image")
    path = {"bytes": None, "path": str(tmp_path / "a.png")}
    dataset = dataset.map(lambda _: {"chosen": path}, features=dataset.features)
    assert len(inspect_dataset(dataset).problems) == 2
    picture(size=(64, 64)).save(tmp_path / "a.png")
    assert inspect_dataset(dataset).problems == []


@pytest.mark.parametrize(
    "arguments, message",
    [(["--rows", "0"], "no number above 0"), (["--columns", "a"], "is not JSON"), (["--columns", "[]"], "no mapping")],
)
def test_arguments(arguments, message, folder, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["validate", str(folder), *arguments])
    assert exit.value.code == 2 and message in capsys.readouterr().err


def test_columns(folder, capsys):
    table(pair()).rename_columns({"prompt": "caption", "chosen": "a", "rejected": "b"}).save_to_disk(folder)
    columns = '{"prompt": "caption", "chosen": "a", "rejected": "b"}'
    assert main(["validate", str(folder), "--columns", columns]) == 0
    assert "can be trained on" in capsys.readouterr().out


def test_nothing_to_read():
    empty = table(pair()).select([])
    for dataset in (empty, datasets.IterableDataset.from_generator(lambda: iter(()))):
        ((_, problem),) = inspect_dataset(dataset).problems
        assert "the dataset is empty" in problem
