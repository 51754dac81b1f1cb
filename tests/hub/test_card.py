# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The model card: its code runs as written, its pictures are there, and it says nothing that is not known."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from huggingface_hub import ModelCard

from tests.fixtures.pairs import make_pairs, random_image
from tests.fixtures.pipelines import PIPELINES, TINY
from tests.fixtures.trainers import make_focus_trainer, make_trainer
from trl_focus import FocusDPOTrainer, LogFocusMapsCallback, LogSamplesCallback
from trl_focus.cli import main
from trl_focus.hub import base_model, metrics
from trl_focus.hub.card import write_card
from trl_focus.hub.snippet import snippet


def code_of(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


def saved_base(name: str, folder: Path) -> str:
    pipeline = PIPELINES[name]()
    kwargs = {"overwrite_modular_index": True} if name == "flux3" else {}
    pipeline.save_pretrained(str(folder), **kwargs)
    return str(folder)


def trained(tmp_path, name: str, samples: bool = True, **kwargs):
    """A trainer that was trained on a base from a folder, with the samples that its card shows."""
    trainer = make_trainer(
        output_dir=tmp_path / "run",
        family=name,
        pipeline=saved_base(name, tmp_path / "base"),
        train_dataset=kwargs.pop("train_dataset", make_pairs(4, n_references=TINY[name].references)),
        max_steps=2,
        **kwargs,
    )
    if samples:
        rng = np.random.default_rng(0)
        rows = [
            {
                "prompt": f'a `cat` in "{place}"',
                "references": [random_image(rng) for _ in range(TINY[name].references)],
            }
            for place in ("red", "blue")
        ]
        trainer.add_callback(
            LogSamplesCallback(trainer, rows, seed=5, num_inference_steps=2, **TINY[name].call_kwargs)
        )
    trainer.train()
    trainer.save_model()
    return trainer


# ---- The code ----


@pytest.mark.parametrize("name", ["flux2_klein", "sd15", "flux3", "flux_uno", "kontext", "z_image"])
def test_code_draws_the_first_sample(name, tmp_path, monkeypatch):
    """In the folder of the card, as it is written there."""
    helped = {"reference_resolution": 48} if name in ("flux_uno", "kontext") else {}
    trained(tmp_path, name, **helped)
    assert all(f"    {key}={value}," in code_of(tmp_path / "run") for key, value in helped.items())
    monkeypatch.chdir(tmp_path / "run")
    names = {}
    exec(code_of(tmp_path / "run"), names)
    shown = np.asarray(PIL.Image.open("samples/1.png"), int)
    assert np.abs(np.asarray(names["image"], int) - shown).max() <= 1
    assert np.array_equal(PIL.Image.open("image.png"), names["image"])
    names["pipe"].unload_lora_weights()
    last = code_of(tmp_path / "run").split(")\n\n")[-1]
    exec(last[last.index("image = ") :], names)
    assert np.abs(np.asarray(names["image"], int) - shown).max() > 1


@pytest.mark.parametrize("name", ["flux2_klein", "flux_uno", "flux3", "sd3"])
def test_code_without_samples(name, tmp_path, monkeypatch):
    """With the first prompt of the data."""
    trained(tmp_path, name, samples=False)
    monkeypatch.chdir(tmp_path / "run")
    code, names = code_of(tmp_path / "run"), {}
    assert 'prompt="pair 0: thing 0' in code and "height=64" in code
    exec(code.replace("    height=64,\n", "    height=64, num_inference_steps=1,\n"), names)
    assert names["image"].size == (64, 64)


def test_code_of_a_model_that_must_have_a_reference(tmp_path, monkeypatch):
    """The reader's picture. The base is handed over in memory: its processor can't be loaded without torchvision."""
    make_trainer(output_dir=tmp_path, family="qwen_image_edit", max_steps=1).save_model()
    monkeypatch.chdir(tmp_path)
    random_image(np.random.default_rng(0)).save("reference.png")
    fresh = PIPELINES["qwen_image_edit"]()
    monkeypatch.setattr(type(fresh), "from_pretrained", lambda *args, **kwargs: fresh)
    names = {}
    exec(code_of(tmp_path).replace("    height=64,", "    height=64, num_inference_steps=1,"), names)
    assert names["image"].size == (64, 64) and names["pipe"].get_active_adapters()


def test_code_of_data_without_references(tmp_path):
    trainer = trained(tmp_path, "flux2_klein", samples=False, train_dataset=make_pairs(4))
    assert "image=" not in code_of(tmp_path / "run")
    assert ModelCard.load(tmp_path / "run" / "README.md").data.pipeline_tag == "text-to-image"
    assert trainer.family.reference_counts == (0, None)


@pytest.mark.parametrize("name,told", [("flux", True), ("sd15", False)])
def test_code_tells_the_guidance_of_training_to_models_that_are_told_some(name, told, tmp_path):
    make_trainer(output_dir=tmp_path, family=name, guidance_scale=2.5).save_model()
    assert ("guidance_scale=2.5" in code_of(tmp_path)) is told


FACTS = {
    "repo": "ann/lora",
    "revision": "v2",
    "pipeline": "Flux2Pipeline",
    "base": {"id": "org/base", "load": {"revision": "abc"}},
    "modular": False,
    "unused_blocks": [],
    "dtype": "bfloat16",
    "references": {"least": 0, "most": None},
    "with_references": True,
    "helper": None,
    "call": {"height": 64, "guidance_scale": 2.5},
    "prompt": "a ``` cat\n",
}


def test_code_of_a_repository():
    sample = {"prompt": "a cat", "references": ["1-reference-1.png"], "seed": 3, "settings": {"height": 32}}
    code = snippet(FACTS, [sample])
    assert 'Flux2Pipeline.from_pretrained("org/base", revision="abc", dtype=torch.bfloat16)' in code
    assert 'pipe.load_lora_weights("ann/lora", revision="v2")' in code
    assert 'load_image(hf_hub_download("ann/lora", "samples/1-reference-1.png", revision="v2"))' in code
    assert "height=32" in code and "guidance_scale" not in code and "manual_seed(3)" in code
    compile(code, "card", "exec")


def test_code_of_a_sample_with_references_that_the_data_had_none_of():
    sample = {"prompt": "a cat", "references": ["1-reference-1.png"], "seed": 3, "settings": {}}
    code = snippet({**FACTS, "with_references": False}, [sample])
    assert "    image=references,\n" in code and "1-reference-1.png" in code


def test_a_prompt_does_not_end_the_block_of_code():
    code = snippet(FACTS, [])
    assert "```" not in code and "guidance_scale=2.5" in code
    (line,) = (line for line in code.splitlines() if "prompt=" in line)
    assert eval(line.strip().removeprefix("prompt=").removesuffix(",")) == FACTS["prompt"]


@pytest.mark.parametrize(
    "base,place",
    [({"folder": "tuned", "load": {}}, "path/to/tuned"), ({"load": {}}, "path/to/the-base-model")],
)
def test_code_of_a_base_that_is_nowhere_on_the_hub(base, place):
    code = snippet({**FACTS, "base": base}, [])
    assert f'from_pretrained("{place}"' in code


# ---- What it shows ----


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with all that a card can show."""
    folder = tmp_path_factory.mktemp("card")
    base = saved_base("flux2_klein", folder / "base")
    (folder / "base" / "README.md").write_text(
        "---\nlicense: other\nlicense_name: some-terms\nlicense_link: LICENSE.md\n---\n# b"
    )
    trainer = make_trainer(
        FocusDPOTrainer,
        folder / "run",
        pipeline=base,
        max_steps=4,
        eval_dataset={"easy": make_pairs(2, n_references=2)},
        eval_strategy="steps",
        eval_steps=2,
        callbacks=[LogFocusMapsCallback(every_n_steps=2)],
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, 0.5],
    )
    rows = [{**row, "prompt": f"{row['prompt']} | <b>"} for row in make_pairs(2, n_references=2, masks=False)]
    trainer.add_callback(LogSamplesCallback(trainer, rows, every_n_steps=2, num_inference_steps=1))
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(dataset_name="ann/pairs", tags="mine")
    return trainer, folder / "run"


def test_metadata(run):
    _, folder = run
    data = ModelCard.load(folder / "README.md").data.to_dict()
    assert data["library_name"] == "diffusers" and data["pipeline_tag"] == "image-to-image"
    assert data["datasets"] == "ann/pairs" and {"trl", "focus-dpo", "lora", "template:sd-lora", "mine"} <= {
        *data["tags"]
    }
    assert (data["license"], data["license_name"]) == ("other", "some-terms")
    assert "license_link" not in data  # a file of the base's folder, which nobody else has
    assert "base_model" not in data and "base_model_relation" not in data
    assert [item["text"] for item in data["widget"]] == [f"pair {i}: thing 0 and thing 1 | <b>" for i in range(2)]
    assert all((folder / item["output"]["url"]).is_file() for item in data["widget"])


def test_pictures_are_there(run):
    from markdown_it import MarkdownIt

    _, folder = run
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(ModelCard.load(folder / "README.md").text)
    pictures = re.findall(r'<img src="([^"]+)"', html)
    assert pictures == ["samples/step-000004.png", "training_curve.png", "focus_maps/step-000002.png"]
    assert all(PIL.Image.open(folder / name).width > 100 for name in pictures)
    assert "<Gallery />" in html and html.count("<table>") == 2 and html.count("<h2>") == 4


def test_tables(run):
    trainer, folder = run
    text = (folder / "README.md").read_text()
    logs = trainer.state.log_history
    losses = [log["loss"] for log in logs if "loss" in log]
    evaluations = {log["step"]: log["eval_easy_loss"] for log in logs if "eval_easy_loss" in log}
    assert f"| `loss` | {losses[0]:.4g} | {losses[-1]:.4g} |  |" in text
    best = min(evaluations, key=evaluations.get)
    assert (
        f"| `eval_easy_loss` | {evaluations[2]:.4g} | {evaluations[4]:.4g} | {evaluations[best]:.4g} (step {best}) |"
        in text
    )
    for row in [
        "| loss_weights | 1, 0.5 |",
        "| beta | 2000 |",
        "| updates | 4 |",
        "| pairs in an update | 2 |",
        "| LoRA rank, alpha | 16, 16 |",
    ]:
        assert row in text
    assert "label_smoothing" not in text  # as by default


def test_it_is_made_again_without_the_trainer(run):
    _, folder = run
    before = (folder / "README.md").read_text()
    (folder / "README.md").unlink(), (folder / "training_curve.png").unlink()
    write_card(folder)
    assert (folder / "README.md").read_text() == before and (folder / "training_curve.png").is_file()
    with pytest.raises(FileNotFoundError, match="card.json.*`output_dir` of a run"):
        write_card(folder / "samples")


def test_the_command_writes_it_anew(run, tmp_path, capsys):
    _, folder = run
    (tmp_path / "card.json").write_bytes((folder / "card.json").read_bytes())
    assert main(["card", str(tmp_path)]) == 2 and not (tmp_path / "README.md").exists()
    assert main(["card", str(tmp_path), "--rewrite"]) == 0
    assert "library_name: diffusers" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text().startswith("---\n")
    assert main(["card", str(tmp_path / "elsewhere"), "--rewrite"]) == 2
    (tmp_path / "card.json").unlink()
    assert main(["card", str(tmp_path), "--rewrite"]) == 2
    assert "has no card.json" in capsys.readouterr().err
    for text in ("{}", "[]", "{"):
        (tmp_path / "card.json").write_text(text)
        assert main(["card", str(tmp_path), "--rewrite"]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_without_matplotlib_there_is_no_curve(run, tmp_path, monkeypatch):
    _, folder = run
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_card(tmp_path, json.loads((folder / "card.json").read_text()))
    text = (tmp_path / "README.md").read_text()
    assert (
        "training_curve.png" not in text and "samples" not in text and "focus_maps" not in text
    )  # nor other pictures
    assert "| `loss` |" in text


def test_a_run_that_has_not_begun(tmp_path):
    make_focus_trainer(tmp_path).save_model()
    text = (tmp_path / "README.md").read_text()
    assert "## Results" not in text and not (tmp_path / "training_curve.png").exists()


def test_it_takes_no_secret_and_no_place_of_the_machine_to_the_hub(tmp_path):
    make_trainer(
        output_dir=tmp_path / "run",
        pipeline=saved_base("flux2_klein", tmp_path / "private" / "base"),
        hub_model_id="ann/lora",
        hub_token="hf_secret",
        model_init_kwargs={"token": "hf_secret"},
    ).save_model()
    for name in ("README.md", "card.json"):
        text = (tmp_path / "run" / name).read_text()
        assert "hf_secret" not in text and str(tmp_path) not in text and "private" not in text
        assert "ann/lora" in text and "base" in text


def test_what_trackers_leave(tmp_path, monkeypatch):
    """wandb has a page of the run, and transformers' callback of trackio puts its own into the model's tags."""
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=SimpleNamespace(url="https://tracker/a-run")))
    trainer = make_trainer(output_dir=tmp_path)
    trainer.model.model_tags = ["trackio"]
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert "trackio" in card.data.tags and "Logs: [Weights & Biases](https://tracker/a-run)" in card.text


# ---- Metrics ----


def test_training_is_summed_up_by_tenths_and_evaluation_by_its_best():
    history = [{"step": step, "loss": float(step), "grad_norm": 1.0} for step in range(1, 21)]
    history += [{"step": step, "eval_rewards/accuracies": value} for step, value in ((5, 0.5), (10, 0.9), (15, 0.7))]
    loss, accuracy = metrics.summary(metrics.series(history))
    assert (loss["first"], loss["last"], loss["best"]) == (1.5, 19.5, None)
    assert accuracy == {"metric": "eval_rewards/accuracies", "first": 0.5, "last": 0.7, "best": 0.9, "best_step": 10}


def test_long_curves_are_thinned_to_means():
    points = [(step, float(step % 2)) for step in range(1, 1001)]
    thin = metrics.thinned(points)
    assert (
        len(thin) == 200
        and thin[-1] == (1000, pytest.approx(0.4))
        and np.mean([v for _, v in thin]) == pytest.approx(0.5)
    )
    assert metrics.thinned(points[:7]) == points[:7]


# ---- The base's license ----


class Hub:
    """Answers for a repository, or fails."""

    def __init__(self, monkeypatch, data=None, error=None):
        self.asked = []

        def model_info(api, repo, **kwargs):
            self.asked.append((repo, kwargs))
            if error:
                raise error
            return type("Info", (), {"card_data": data})

        base_model._license_on_hub.cache_clear()
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)


def test_license_of_a_base_on_the_hub(monkeypatch, tmp_path):
    data = {"license": "other", "license_name": "terms", "license_link": "LICENSE.md"}
    hub = Hub(monkeypatch, data)
    base = base_model.base_model("org/base", tmp_path, {"revision": "v1", "token": "t", "dtype": "bfloat16"})
    assert base["license_link"] == "https://huggingface.co/org/base/blob/v1/LICENSE.md"
    assert (base["id"], base["license"], base["load"]) == ("org/base", "other", {"revision": "v1"})
    assert hub.asked == [("org/base", {"revision": "v1", "timeout": 3, "token": "t"})]


@pytest.mark.parametrize("answer", [{"error": TimeoutError()}, {"data": None}, {"data": {}}])
def test_license_that_is_not_known_is_not_named(monkeypatch, tmp_path, answer):
    hub = Hub(monkeypatch, **answer)
    for _ in range(2):  # it is asked once
        assert base_model.base_model("org/base", tmp_path, {}) == {"id": "org/base", "load": {}}
    assert len(hub.asked) == 1


@pytest.mark.parametrize("readme", [None, "# no metadata", "---\nlicense: [\n---\n", "---\n- a list\n---\n"])
def test_folders_without_a_license(tmp_path, readme):
    (tmp_path / "base").mkdir()
    if readme is not None:
        (tmp_path / "base" / "README.md").write_text(readme)
    expected = {"folder": "../base", "load": {}}
    assert base_model.base_model(str(tmp_path / "base"), tmp_path / "run", {}) == expected
