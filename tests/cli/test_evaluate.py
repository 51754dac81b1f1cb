# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""`trl-focus evaluate`, with a tiny pipeline and tiny models, from folders."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.fixtures.embedders import save_clip, save_dino, save_dinov2
from tests.fixtures.pairs import random_image
from tests.fixtures.pipelines import PIPELINES, PROMPT_KWARGS
from tests.fixtures.seeing import save_detector, save_matcher, save_segmenter
from trl_focus.cli import main
from trl_focus.evaluation import drawing
from trl_focus.hub.lora import save_lora


CALL = {"height": 64, "width": 64, "num_inference_steps": 2, **PROMPT_KWARGS["flux2_klein"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "dino": save_dino(folder / "dino"),
        "clip": save_clip(folder / "clip"),
        "identity_model": save_dinov2(folder / "dinov2"),
    }


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Folders of a tiny pipeline and of a LoRA for it."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipe = PIPELINES["flux2_klein"]()
    pipe.save_pretrained(folder / "base")
    policy = get_peft_model(pipe.transformer, LoraConfig(r=4, lora_alpha=64, target_modules=["to_q", "to_v"]))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    save_lora(pipe, "transformer", policy, folder / "lora")
    return {"model": str(folder / "base"), "lora": str(folder / "lora")}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing")
    return {
        "detector": save_detector(folder / "owlv2"),
        "segmenter": save_segmenter(folder / "sam"),
        "matcher": save_matcher(folder / "dinov2"),
    }


@pytest.fixture
def folder(tmp_path):
    """A benchmark of three rows, one of which names an image that is not there."""
    for i in range(2):
        random_image(np.random.default_rng(i)).save(tmp_path / f"{i}.png")
    entries = [
        {"prompt": "one", "image_paths": ["0.png"]},
        {"prompt": "none", "image_paths": ["2.png"]},
        {"prompt": "both", "image_paths": ["0.png", "1.png"], "boxes": [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]},
    ]
    (tmp_path / "benchmark.json").write_text(json.dumps(entries))
    return tmp_path


def arguments(folder, **options) -> list[str]:
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["evaluate", str(folder / "benchmark.json"), "--output_dir", str(folder / "out"), *given]


def test_base_and_lora(folder, models, pipeline, capsys, monkeypatch):
    options = {**models, **pipeline, "n_images": 2, "call": json.dumps(CALL)}
    assert main(arguments(folder, **options)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "row 1: `image_paths`[0] is '2.png', which can't be used" in out
    assert "8 images measured, 0 of them with remarks; 1 rows with problems" in out
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["means"].keys() == {"base", "lora"} and report["differences"].keys() == {"lora"}
    assert {"clip_t", "dino/reference", "identity", "collapse/0.5", "instances/leakage"} <= report["means"][
        "base"
    ].keys()
    assert report["means"]["base"]["identity"]["n"] == 2 and report["means"]["base"]["instances/leakage"]["n"] == 1

    images = {path.relative_to(folder / "out"): path.read_bytes() for path in folder.glob("out/images/*/*")}
    assert {str(path) for path in images} == {
        f"images/{system}/{row}_{number}.png" for system in ("base", "lora") for row in (0, 2) for number in (0, 1)
    }
    assert len({*images.values()}) == 8  # each from its own noise, and the LoRA's are not the base's

    # What is missing is drawn again, and is what it was: from the row's own noise, with the same LoRA
    lost = folder / "out" / "images" / "lora" / "2_1.png"
    lost.unlink()
    drawn = []
    monkeypatch.setattr(drawing, "draw_image", lambda *args, **kw: drawn.append(args) or draw_image(*args, **kw))
    assert main(arguments(folder, **options)) == 0
    assert len(drawn) == 1 and lost.read_bytes() == images[lost.relative_to(folder / "out")]
    assert json.loads((folder / "out" / "report.json").read_text()) == report
    capsys.readouterr()

    assert main(arguments(folder, **options, seed=1)) == 2
    assert "holds a run of other settings: seed" in capsys.readouterr().err


draw_image = drawing.draw_image


def test_a_lora_that_was_trained_anew_is_another_run(folder, models, pipeline, tmp_path, capsys):
    shutil.copytree(pipeline["lora"], tmp_path / "lora")
    options = {**models, "model": pipeline["model"], "lora": tmp_path / "lora", "call": json.dumps(CALL)}
    assert main(arguments(folder, **options)) == 0
    (weights,) = (tmp_path / "lora").glob("*.safetensors")
    save_file({name: 2 * value for name, value in load_file(weights).items()}, weights)
    assert main(arguments(folder, **options)) == 2
    assert "holds a run of other settings: content of the LoRA" in capsys.readouterr().err


def test_a_lora_of_another_model_is_refused_before_anything_is_drawn(folder, models, pipeline, tmp_path, capsys):
    shutil.copytree(pipeline["lora"], tmp_path / "lora")
    (weights,) = (tmp_path / "lora").glob("*.safetensors")
    save_file({name.replace("transformer.", "unet."): value for name, value in load_file(weights).items()}, weights)
    options = {**models, "model": pipeline["model"], "call": json.dumps(CALL)}
    for lora, message in (
        (tmp_path / "lora", "it is a LoRA of another model"),
        (tmp_path / "none", "none can't be loaded"),
    ):
        assert main(arguments(folder, **options, lora=lora)) == 2
        assert message in capsys.readouterr().err
    assert not [*folder.glob("out/images/*/*")]


def test_images_of_the_benchmark_count(folder, models, capsys):
    (folder / "theirs").mkdir()
    for row in (0, 2):
        random_image(np.random.default_rng(row)).save(folder / "theirs" / f"{row}_0.png")
    assert main(arguments(folder, **models, images=f"theirs={folder}/theirs")) == 0
    random_image(np.random.default_rng(9)).save(folder / "0.png")
    assert main(arguments(folder, **models, images=f"theirs={folder}/theirs")) == 2
    assert "other settings: images of the benchmark" in capsys.readouterr().err


def test_settings_of_a_wrong_type(folder, models, pipeline, capsys):
    options = {**models, "model": pipeline["model"], "call": json.dumps({**CALL, "height": "64"})}
    assert main(arguments(folder, **options)) == 2
    out, err = capsys.readouterr()
    assert "row 0: Flux2KleinPipeline refuses it: " in out and "no image could be measured" in err


def test_output_that_is_a_file(folder, models, capsys):
    (folder / "out").write_text("")
    assert main(arguments(folder, **models, images=f"a={folder}")) == 2
    assert "out is a file: name a folder" in capsys.readouterr().err


def test_what_a_damaged_image_costs(folder, models, capsys):
    """Its own row, and not the report."""
    for system in ("a", "b"):
        (folder / system).mkdir()
        for row in (0, 2):
            random_image(np.random.default_rng(row)).save(folder / system / f"{row}_0.png")
    (folder / "b" / "0_0.png").write_bytes(b"junk")
    flags = ["--images", f"a={folder}/a", "--images", f"b={folder}/b"]
    assert main([*arguments(folder, **models), *flags]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "row 0: the image of b can't be used" in out and "3 images measured" in out
    assert (folder / "out" / "report.html").is_file()


def test_remarks_are_told_once_each(folder, models, seeing, capsys):
    (folder / "theirs").mkdir()
    for row, number in ((0, 0), (0, 1), (2, 0), (2, 1)):
        random_image(np.random.default_rng(row)).save(folder / "theirs" / f"{row}_{number}.png")
    options = {**models, **seeing, "find": "reference", "confidence": 1, "images": f"theirs={folder}/theirs"}
    assert main(arguments(folder, **options, n_images=2)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "row 0: image 0 of theirs: no subject found, and 1 asked for (and of 1 more)" in out
    assert out.count("no subject found, and 1 asked for") == 1
    assert "row 2: image 0 of theirs: no subject found, and 2 asked for" in out


def test_an_image_is_the_pipelines_own(folder, pipeline):
    from diffusers import DiffusionPipeline

    from trl_focus.evaluation import draw_images, read_benchmark

    pipe = DiffusionPipeline.from_pretrained(pipeline["model"])
    items = read_benchmark(folder / "benchmark.json").items
    assert draw_images(pipe, items[1:], folder / "drawn", n_images=2, seed=3, **CALL) == []
    references = [PIL.Image.open(folder / f"{i}.png") for i in range(2)]
    generator = torch.Generator().manual_seed(4)
    expected = pipe(prompt="both", image=references, generator=generator, **CALL).images[0]
    with PIL.Image.open(folder / "drawn" / "2_1.png") as found:
        assert np.array_equal(found, expected)


def test_images_of_another_tool(folder, models, capsys):
    (folder / "theirs").mkdir()
    for row in (0, 2):
        random_image(np.random.default_rng(row)).save(folder / "theirs" / f"{row}_0.png")
    assert main(arguments(folder, **models, images=f"theirs={folder}/theirs")) == 0
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["means"]["theirs"]["identity"]["n"] == 2 and report["differences"] == {}
    assert not (folder / "out" / "images").exists()
    capsys.readouterr()

    (folder / "theirs" / "2_0.png").unlink()
    assert main(arguments(folder, **models, images=f"theirs={folder}/theirs")) == 0
    assert "row 2: the image of theirs can't be used" in capsys.readouterr().out


def test_subjects_are_found_by_their_references(folder, models, seeing, capsys):
    (folder / "theirs").mkdir()
    for row in (0, 2):
        random_image(np.random.default_rng(row)).save(folder / "theirs" / f"{row}_0.png")
    options = {**models, **seeing, "images": f"theirs={folder}/theirs", "find": "reference", "confidence": 0}
    assert main(arguments(folder, **options)) == 0
    report = json.loads((folder / "out" / "report.json").read_text())
    means = report["means"]["theirs"]
    assert means["instances/identity"]["n"] == means["instances/found"]["n"] == 2  # row 0 has no boxes
    assert seeing["matcher"] in (folder / "out" / "report.md").read_text()
    capsys.readouterr()
    assert main(arguments(folder, **{**options, "confidence": 0.9})) == 2
    assert "holds a run of other settings: confidence" in capsys.readouterr().err


def test_nothing_is_left(folder, models, capsys):
    (folder / "theirs").mkdir()
    assert main(arguments(folder, **models, images=f"theirs={folder}/theirs")) == 2
    assert "no image could be measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "there is nothing to measure"),
        ({"lora": "a", "images": "a=."}, "`--lora` is loaded into a pipeline"),
        ({"images": "a=no-folder"}, "no-folder is no folder"),
        ({"model": "a", "images": "base=."}, "two systems have one name"),
        ({"images": "a=.", "call": '{"height": 64}'}, "are of a pipeline: give it, as `--model`"),
        ({"images": "a=.", "dino": "no-model"}, "the model no-model can't be loaded: "),
        ({"images": "a=.", "overlap": "0.1"}, "`--overlap`: without `--find`, no subjects are searched"),
        ({"images": "a=.", "find": "name", "confidence": "2"}, "`confidence` is 2.0: it lies between 0 and 1"),
        ({"images": "a=.", "find": "name"}, "the benchmark has none: give it `subjects`, or `--find reference`"),
        ({"images": "a=.", "find": "reference", "matcher": "no-model"}, "the matcher no-model can't be loaded"),
        ({"model": "{model}", "call": '{"hight": 64}'}, "`--call` holds hight; Flux2KleinPipeline can be called with"),
    ],
    ids=str,
)
def test_what_can_not_be_used(options, message, folder, models, pipeline, seeing, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    models = models | ({"segmenter": seeing["segmenter"]} if "find" in options else {})
    options = models | {name: value.replace("{model}", pipeline["model"]) for name, value in options.items()}
    assert main(arguments(folder, **options)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a", "=b", "a=", "a/b=c", "../a=c"])
def test_names_of_images(text, folder, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments(folder, images=text))
    assert exit.value.code == 2 and "NAME=FOLDER" in capsys.readouterr().err


def test_model_that_reads_no_text(folder, models, capsys):
    options = {**models, "clip": models["dino"], "images": f"a={folder}"}
    assert main(arguments(folder, **options)) == 2
    assert "reads no text: give a CLIP model" in capsys.readouterr().err


def test_no_benchmark(tmp_path, capsys):
    assert main(arguments(tmp_path, images=f"a={tmp_path}")) == 2
    assert "can't be read" in capsys.readouterr().err


def test_pipeline_that_takes_no_references(folder, models, tmp_path, capsys):
    PIPELINES["sd15"]().save_pretrained(tmp_path / "sd15")
    assert main(arguments(folder, **models, model=tmp_path / "sd15")) == 2
    out, err = capsys.readouterr()
    assert "row 0: StableDiffusionPipeline refuses it: StableDiffusionPipeline takes no references" in " ".join(
        out.split()
    )
    assert "no image could be measured" in err
