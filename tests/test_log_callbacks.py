# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json

import numpy as np
import PIL.Image
import pytest
import torch

from tests.fixtures.pairs import make_pairs, random_image
from tests.fixtures.pipelines import PIPELINES
from tests.fixtures.trainers import assert_equal_weights, lora_of, make_focus_trainer, make_trainer
from trl_focus import FocusMapCallback, FocusScheduleCallback, LogFocusMapsCallback, LogSamplesCallback
from trl_focus.focus.allocation import FocusWeights, weigh


class Watch(FocusMapCallback):
    def __init__(self):
        self.maps = []

    def on_focus_maps(self, args, state, control, focus_maps, batch, **kwargs):
        self.maps.append({name: part.clone() for name, part in focus_maps.items()})


# ---- Schedule ----


def test_schedule_moves_the_weights(tmp_path):
    """Over the first half of eight steps: at steps 0, 2, 4 and 7 none, half, all and all of the way."""
    watch, start = Watch(), {"background": 1.0, "prior": 0.0, "detail": 0.0}
    trainer = make_focus_trainer(tmp_path, max_steps=8, callbacks=[FocusScheduleCallback(start, until=0.5), watch])
    trainer.train()
    ends = {
        0: FocusWeights(1.0, 0.0, 0.2, 0.3, 0.0),
        2: FocusWeights(0.515, 0.235, 0.2, 0.3, 0.1),
        4: FocusWeights(0.03, 0.47, 0.2, 0.3, 0.2),
        7: FocusWeights(0.03, 0.47, 0.2, 0.3, 0.2),
    }
    for step, weights in ends.items():
        torch.testing.assert_close(watch.maps[step]["weights"], weigh(watch.maps[step], weights))


def test_schedule_keeps_the_normalization(tmp_path):
    watch = Watch()
    callbacks = [FocusScheduleCallback({"background": 3.0}), watch]
    make_focus_trainer(tmp_path, focus_map="mask", focus_normalization="mean", callbacks=callbacks).train()
    for maps in watch.maps:
        torch.testing.assert_close(maps["weights"].mean(dim=(1, 2)), torch.ones(4))


@pytest.mark.parametrize(
    "arguments,message",
    [
        (({"edges": 1.0},), "`start` has 'edges'; the parts are background, prior, structure, leak, detail"),
        (({"prior": -1.0},), "prior=-1.0.*at least 0"),
        (({}, 0.0), "`until` is 0.0"),
        (({}, 1.5), "`until` is 1.5"),
    ],
)
def test_schedules_that_can_not_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        FocusScheduleCallback(*arguments)


def test_schedule_refuses_a_map_that_is_no_sum(tmp_path):
    trainer = make_focus_trainer(tmp_path, focus_map="patch", callbacks=[FocusScheduleCallback({"prior": 0.0})])
    with pytest.raises(ValueError, match="'patch'` are no sum of parts"):
        trainer.train()


# ---- Focus maps ----


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_focus_maps_are_drawn_every_n_steps(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "trl_focus.callbacks.focus_maps.focus_sheet",
        lambda images, maps, captions: drawn.append((images, maps, captions)) or PIL.Image.new("RGB", (8, 8)),
    )
    watch = Watch()
    trainer = make_focus_trainer(
        tmp_path,
        max_steps=5,
        gradient_accumulation_steps=2,
        eval_dataset=make_pairs(2, n_references=2),
        eval_strategy="steps",
        eval_steps=1,
        callbacks=[watch, LogFocusMapsCallback(every_n_steps=2, n_pairs=1)],
    )
    trainer.train()
    assert files(tmp_path / "focus_maps") == ["step-000000.png", "step-000002.png", "step-000004.png"]
    images, maps, captions = drawn[0]
    seen = watch.maps[0]
    assert [caption.split(",")[0] for caption in captions] == ["chosen", "rejected"] and len(images) == 2
    assert maps.keys() == seen.keys()
    row = next(i for i in range(2) if np.array_equal(maps["weights"][0], seen["weights"][i]))
    assert np.array_equal(maps["weights"][1], seen["weights"][row + 2])


def test_pairs_stand_in_order_of_noise(tmp_path, monkeypatch):
    captions = []
    monkeypatch.setattr(
        "trl_focus.callbacks.focus_maps.focus_sheet",
        lambda images, maps, said: captions.append(said) or PIL.Image.new("RGB", (8, 8)),
    )
    make_focus_trainer(
        tmp_path,
        max_steps=1,
        train_dataset=make_pairs(6, n_references=1),
        per_device_train_batch_size=6,
        callbacks=[LogFocusMapsCallback(n_pairs=n_pairs) for n_pairs in (6, 3)],
    ).train()
    every, third = ([float(caption.split()[-1]) for caption in said] for said in captions)
    assert every == sorted(every) and every[::2] == every[1::2] and every[0] < every[-1]
    assert third[::2] == every[::4]  # a few pairs stand for all levels


def test_training_is_as_without(tmp_path):
    weights = []
    for callbacks in ([], [LogFocusMapsCallback(every_n_steps=1)]):
        trainer = make_focus_trainer(tmp_path / str(len(callbacks)), callbacks=callbacks)
        trainer.train()
        weights.append(lora_of(trainer))
    assert_equal_weights(*weights)


# ---- Samples ----


def sheets(output_dir):
    return [name for name in files(output_dir / "samples") if name.startswith("step-")]


def rows(n_references):
    rng = np.random.default_rng(0)
    return [
        {"prompt": "a cat", "references": [random_image(rng) for _ in range(n_references)]},
        {"prompt": "a cat in a hat", "references": [random_image(rng)] * bool(n_references)},
    ]


def with_samples(trainer, n_references, **kwargs):
    callback = LogSamplesCallback(trainer, rows(n_references), num_inference_steps=2, **kwargs)
    trainer.add_callback(callback)
    return callback


@pytest.mark.parametrize("family,n_references", [("flux2_klein", 2), ("sd15", 0)])
def test_samples_leave_training_alone(tmp_path, family, n_references):
    weights = []
    for sampled in (True, False):
        trainer = make_trainer(output_dir=tmp_path, family=family, max_steps=4)
        scheduler = trainer.pipeline.scheduler
        if sampled:
            with_samples(trainer, n_references, every_n_steps=1)
        trainer.train()
        assert trainer.pipeline.scheduler is scheduler
        weights.append(lora_of(trainer))
    assert_equal_weights(*weights)
    assert sheets(tmp_path) == [f"step-00000{step}.png" for step in range(5)]


def test_samples_are_those_of_the_pipelines_base_and_lora(tmp_path, monkeypatch):
    pages = []
    monkeypatch.setattr(
        "trl_focus.callbacks.samples.sheet",
        lambda rows, titles, captions: pages.append((rows, titles, captions)) or PIL.Image.new("RGB", (8, 8)),
    )
    trainer = make_trainer(output_dir=tmp_path, max_steps=3)
    callback = with_samples(trainer, 2, every_n_steps=2, seed=7)
    trainer.train()
    assert sheets(tmp_path) == ["step-000000.png", "step-000002.png", "step-000003.png"]
    first, _, last = pages
    assert last[1] == ["base", "with LoRA", "reference 1", "reference 2"]
    assert last[2] == ["a cat", "a cat in a hat"] and last[0][1][3] is None
    for (base, untrained, *_), (again, tuned, *_) in zip(first[0], last[0], strict=True):
        assert np.array_equal(base, untrained) and np.array_equal(base, again) and not np.array_equal(base, tuned)

    plain = PIPELINES["flux2_klein"]()
    for i, row in enumerate(callback.rows):
        expected = plain(
            prompt=row["prompt"],
            image=row["references"],
            height=64,
            width=64,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(7 + i),
            **trainer.family.encode_prompt_kwargs,
        ).images[0]
        assert np.abs(np.asarray(expected, int) - np.asarray(last[0][i][0], int)).max() <= 1


def test_samples_of_a_bf16_model(tmp_path):
    trainer = make_trainer(
        output_dir=tmp_path, pipeline=PIPELINES["flux2_klein"]().to(torch.bfloat16), max_steps=1, bf16=True
    )
    with_samples(trainer, 1)
    trainer.train()
    assert sheets(tmp_path) == ["step-000000.png", "step-000001.png"]


def test_last_samples_stand_one_by_one_with_what_they_were_drawn_from(tmp_path):
    trainer = make_trainer(output_dir=tmp_path, max_steps=3)
    callback = with_samples(trainer, 2, every_n_steps=2, seed=7)
    trainer.train()
    folder = tmp_path / "samples"
    first, second = map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())
    assert (first["prompt"], first["seed"], second["seed"], second["step"]) == ("a cat", 7, 8, 3)
    assert first["settings"]["num_inference_steps"] == 2 and first["settings"]["height"] == 64
    assert first["references"] == ["1-reference-1.png", "1-reference-2.png"] and len(second["references"]) == 1
    references = [PIL.Image.open(folder / name) for name in first["references"]]
    for shown, given in zip(references, callback.rows[0]["references"], strict=True):
        assert np.array_equal(shown, given)
    with trainer.sampling():
        again = trainer.pipeline(
            prompt=first["prompt"],
            image=references,
            generator=torch.Generator().manual_seed(first["seed"]),
            **first["settings"],
        ).images[0]
    assert np.array_equal(again, PIL.Image.open(folder / first["file_name"]))


def test_samples_end_with_the_weights_that_are_kept(tmp_path):
    """The best step's, where those are loaded when training ends."""
    trainer = make_trainer(
        output_dir=tmp_path,
        max_steps=2,
        eval_dataset=make_pairs(2, n_references=2),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="epoch",
        greater_is_better=False,
    )
    trainer._determine_best_metric = lambda metrics, trial: best_is_the_first(trainer)
    callback = with_samples(trainer, 2, every_n_steps=1)
    trainer.train()
    assert trainer.state.best_global_step == 1
    kept = callback._sample()[0]
    assert np.array_equal(kept, PIL.Image.open(tmp_path / "samples" / "1.png"))


def best_is_the_first(trainer) -> bool:
    state = trainer.state
    if state.global_step == 1:
        state.best_global_step = 1
        state.best_model_checkpoint = f"{trainer.args.output_dir}/checkpoint-1"
    return state.global_step == 1
