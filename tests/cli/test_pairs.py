# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""`trl-focus pairs`, with a tiny pipeline and a tiny model of identity, from folders."""

import json

import datasets
import numpy as np
import PIL.Image
import pytest

from tests.fixtures.embedders import save_clip, save_dino, save_dinov2
from tests.fixtures.pairs import dataset_of, make_pairs
from tests.fixtures.pipelines import PIPELINES, PROMPT_KWARGS
from tests.fixtures.seeing import save_detector, save_segmenter
from trl_focus.cli import main


CALL = json.dumps({"height": 64, "width": 64, "num_inference_steps": 1, **PROMPT_KWARGS["flux2_klein"]})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    PIPELINES["flux2_klein"]().save_pretrained(folder / "base")
    return {
        "model": str(folder / "base"),
        "identity_model": save_dinov2(folder / "dinov2"),
        "dino": save_dino(folder / "dino"),
        "clip": save_clip(folder / "clip"),
        "call": CALL,
    }


@pytest.fixture
def folder(tmp_path):
    make_pairs(3, n_references=2).remove_columns(["rejected", "rejected_masks"]).save_to_disk(tmp_path / "data")
    return tmp_path


def arguments(mode, folder, *flags, **options) -> list[str]:
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["pairs", mode, str(folder / "data"), "--output_dir", str(folder / "out"), *given, *flags]


def pairs_of(folder) -> datasets.Dataset:
    return datasets.load_dataset("parquet", data_files=str(folder / "out" / "pairs" / "*.parquet"), split="train")


def flat(capsys) -> str:
    return " ".join("".join(capsys.readouterr()).split())


def test_best_and_worst(folder, models, capsys):
    options = {**models, "margin": 0, "n_samples": 2, "seed": 4}
    options["weights"] = '{"identity": 1, "clip_t": 0.5}'
    assert main(arguments("best-worst", folder, **options)) == 0
    assert "3 pairs; 0 rows without one; 0 rows with problems." in flat(capsys)
    pairs = pairs_of(folder)
    for number, pair in enumerate(pairs):
        said = json.loads(pair["provenance"])
        assert {*said["seeds"].values()} == {4 + 2 * number, 5 + 2 * number}
        total = {side: found["identity"] + 0.5 * found["clip_t"] for side, found in said["scores"].items()}
        assert pair["margin"] == pytest.approx(total["chosen"] - total["rejected"], abs=1e-6) and pair["margin"] >= 0
        assert said["model"] == models["model"] and said["weights"] == {"identity": 1, "clip_t": 0.5}
        assert pair["chosen"].size == (64, 64) and not np.array_equal(pair["chosen"], pair["rejected"])
    assert main(["validate", str(folder / "out" / "pairs")]) == 0
    capsys.readouterr()
    assert main(arguments("best-worst", folder, **options, rows=1)) == 2
    assert "holds a run of other settings: rows" in flat(capsys)


def test_target(folder, models, capsys):
    assert main(arguments("target", folder, **models, margin=-2, n_samples=1)) == 0
    source = datasets.load_from_disk(folder / "data")
    pairs = pairs_of(folder)
    assert all(np.array_equal(pairs[i]["chosen"], source[i]["chosen"]) for i in range(3))
    assert all(not np.array_equal(pairs[i]["rejected"], source[i]["chosen"]) for i in range(3))


def test_target_of_another_shape(folder, models, capsys):
    columns = ["rejected", "rejected_masks"]
    make_pairs(2, (128, 96), n_references=1).remove_columns(columns).save_to_disk(folder / "wide")
    words = arguments("target", folder, **models, margin=-2, n_samples=1)
    assert main(["pairs", "target", str(folder / "wide"), *words[3:]]) == 2
    said = flat(capsys)
    assert "row 1: `rejected` is 64x64 pixels and `chosen` 128x96: the aspect ratios differ too much" in said
    assert "There is no pair to train on: `--call` needs the target's `height` and `width`." in said
    assert not [*(folder / "out" / "pairs").iterdir()]


def test_corrupt_needs_no_model(folder, capsys):
    assert main(arguments("corrupt", folder, "--kinds", "colour", "blur", block_size=2)) == 0
    pairs = pairs_of(folder)
    assert len(pairs) == 3
    assert all(json.loads(said)["corruption"] in ("colour", "blur") for said in pairs["provenance"])
    assert main(["validate", str(folder / "out" / "pairs")]) == 0


def test_bad_rows(folder, capsys):
    rows = make_pairs(3, n_references=1).remove_columns(["rejected", "rejected_masks"]).to_list()
    rows[1]["prompt"] = ""
    dataset_of(*rows).save_to_disk(folder / "bad")
    options = ["pairs", "corrupt", str(folder / "bad"), "--output_dir", str(folder / "out")]
    assert main(options) == 0
    said = flat(capsys)
    assert "row 1: `prompt` is empty" in said and "2 pairs; 0 rows without one; 1 rows with problems." in said


def test_no_pair(folder, models, capsys):
    assert main(arguments("best-worst", folder, **models, margin=5, n_samples=2)) == 2
    said = flat(capsys)
    assert "0 pairs; 3 rows without one (the first, row 0: its images differ by" in said
    assert "There is no pair to train on." in said


@pytest.mark.parametrize(
    "mode, options, message",
    [
        ("best-worst", {}, "best-worst draws images: give a pipeline"),
        ("target", {}, "target draws images"),
        ("corrupt", {"lora": "a", "n_samples": 4, "margin": 0}, "leave `--lora`, `--n_samples`, `--margin` out"),
        ("corrupt", {"call": "{}", "overlap": 0.5}, "leave `--call`, `--overlap` out"),
        (
            "best-worst",
            {"model": "a", "kinds": "blur"},
            "best-worst draws images, and spoils none: leave `--kinds` out",
        ),
        ("best-worst", {"model": "a", "n_samples": 1}, "of two images at least"),
        ("corrupt", {"kinds": "melt"}, "`--kinds` has melt; there are colour, texture"),
        ("best-worst", {"model": "a", "weights": '{"identity": "much"}'}, "are a finite number for each score"),
        ("best-worst", {"model": "a", "weights": "{}"}, "are a finite number for each score"),
        (
            "best-worst",
            {"model": "a", "weights": '{"beauty": 1}'},
            "`--weights` has beauty; there are instances/identity",
        ),
        (
            "best-worst",
            {"model": "a", "weights": '{"dino/photographs": 1}'},
            "`--weights` has dino/photographs; there are instances/identity",
        ),
        ("best-worst", {"model": "a", "weights": '{"identity": NaN}'}, "are a finite number for each score"),
        ("best-worst", {"model": "a", "weights": '{"identity": -Infinity}'}, "are a finite number for each score"),
        ("best-worst", {"model": "a", "margin": "nan"}, "`--margin` is nan: give a finite number"),
        ("corrupt", {"split": "none"}, "no split 'none'"),
        ("corrupt", {"find": "name"}, "draws and compares nothing: leave `--find` out"),
        ("target", {"model": "a", "missing": "absent"}, "`--missing`: without `--find`, no subjects are searched"),
        ("target", {"model": "a", "weights": '{"instances/found": 1}'}, "and nothing finds them: set `--find`"),
    ],
)
def test_what_can_not_be_used(mode, options, message, folder, capsys):
    assert main(arguments(mode, folder, **options)) == 2
    assert message in flat(capsys)


@pytest.mark.parametrize("part", ["2", "2/2", "a/b", "-1/2"])
def test_parts(part, folder, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments("corrupt", folder, f"--part={part}"))
    assert exit.value.code == 2 and "NUMBER/OF" in capsys.readouterr().err


def test_part_beside_another_that_is_not_finished(folder, capsys):
    unfinished = folder / "out" / "pairs" / "train-000001.part"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"half a file")
    assert main(arguments("corrupt", folder, "--part=0/2", block_size=2)) == 0
    assert "2 pairs;" in flat(capsys)


def test_part_without_rows(folder, capsys):
    part = ("--part=3/4",)
    assert main(arguments("corrupt", folder, *part)) == 0
    said = flat(capsys)
    assert "There was no row for this part" in said and "no pair to train on" not in said
    assert main(arguments("corrupt", folder, "--part=0/4")) == main(arguments("corrupt", folder, *part)) == 0
    assert "To train on them" in flat(capsys)


def test_subjects_are_found_by_their_names(folder, models, tmp_path, capsys, monkeypatch):
    seeing = {"detector": save_detector(tmp_path / "owl"), "segmenter": save_segmenter(tmp_path / "sam")}
    options = {**models, **seeing, "find": "name", "confidence": 0, "margin": 0, "n_samples": 2}
    assert main(arguments("best-worst", folder, **options)) == 0
    said = flat(capsys)
    # The tiny detector sees all subjects in one place: nobody is sure of them
    assert "3 of the pairs have no masks: not all of their subjects were found for sure." in said
    assert "--focus_prior similarity" in said
    for pair in pairs_of(folder):
        assert pair["chosen_masks"] is None
        scores = json.loads(pair["provenance"])["scores"]
        assert pair["margin"] == pytest.approx(
            scores["chosen"]["instances/identity"] - scores["rejected"]["instances/identity"], abs=1e-6
        )
    assert main(arguments("best-worst", folder, **options, overlap=0.1)) == 2
    assert "holds a run of other settings: overlap" in flat(capsys)


@pytest.mark.parametrize("column", [None, "subjects"])
def test_no_names_to_search_by(column, folder, capsys):
    """Neither a column, nor anything in it."""
    dataset = datasets.load_from_disk(folder / "data").remove_columns("subjects")
    if column:
        dataset = dataset.add_column(column, [None] * 3, feature=datasets.List(datasets.Value("string")))
    dataset.save_to_disk(folder / "nameless")
    words = arguments("best-worst", folder, model="a", find="name")
    assert main(["pairs", "best-worst", str(folder / "nameless"), *words[3:]]) == 2
    assert "no row of the dataset names its own: give it `subjects`, or set `--find reference`" in flat(capsys)


def test_unreadable_image_of_a_reference(tmp_path, capsys):
    image = PIL.Image.new("RGB", (64, 64))
    rows = [{"prompt": "a", "chosen": image, "references": [{"bytes": b"x", "path": None}]}]
    dataset_of(*rows).save_to_disk(tmp_path / "data")
    assert main(arguments("corrupt", tmp_path)) == 2
    assert "row 0: `references`[0] can't be decoded" in flat(capsys)
