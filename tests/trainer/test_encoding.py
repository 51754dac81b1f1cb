# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import subprocess
import sys

import datasets
import pytest
import torch
from accelerate import PartialState

from tests.fixtures.families import family_of
from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES, TINY
from tests.fixtures.trainers import make_trainer
from trl_focus import DiffusionDPOTrainer, FocusDPOTrainer
from trl_focus.data.batches import RowKey
from trl_focus.data.cached_table import CachedTable
from trl_focus.data.collator import DataCollatorForDiffusionPreference
from trl_focus.data.encoded import EncodedCollator, pack, unpack
from trl_focus.data.layout import LayoutRule
from trl_focus.data.preparation import prepare_preferences
from trl_focus.trainer import encoding
from trl_focus.trainer.encoding import encode_once, encoder_identity


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "trl-focus"


def collator_of(family, resolution=64, **kwargs):
    rule = LayoutRule(
        resolution,
        family.size_multiple,
        family.reference_rule(),
        stretch=kwargs.get("crop", "none") == "none",
        reference_counts=family.reference_counts,
    )
    return DataCollatorForDiffusionPreference(rule, family.cell_size, **kwargs)


def encoded_rows(family, pairs, collator, variants=1):
    rows = prepare_preferences(pairs, collator.layout_rule)
    return encode_once(rows, family, encoder_identity(family), collator, variants, PartialState())


def encoded_collator(family, collator):
    return EncodedCollator(**vars(collator), stack=family.stack_prompts)


def assert_close(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = [*one.values()], [other[name] for name in one]
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_close(*pair)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    else:
        assert one == other


def test_nested_tensors_are_kept_bit_by_bit():
    whole = torch.arange(6.0).reshape(2, 3)
    value = {"a": [whole[0], {"b": whole[:, 1].bfloat16()}, None, []], "text": "äß", "n": 3, "mask": whole > 2}
    again = unpack(pack(value))
    assert again["a"][2:] == [None, []] and (again["text"], again["n"]) == ("äß", 3)
    assert again["a"][1]["b"].dtype == torch.bfloat16 and again["mask"].dtype == torch.bool
    assert torch.equal(again["a"][0], whole[0]) and torch.equal(again["a"][1]["b"], value["a"][1]["b"])
    assert torch.equal(again["mask"], value["mask"])
    assert len(pack(whole[0])) < 200  # not the whole that it is a part of


@pytest.mark.parametrize("name", TINY)
def test_batches_hold_what_a_step_would_encode(name):
    family = family_of(name)
    pairs = make_pairs(3, n_references=TINY[name].references)
    prompts = [*pairs["prompt"][:2], pairs["prompt"][0]]  # one stands twice
    pairs = pairs.remove_columns("prompt").add_column("prompt", prompts)
    collator = collator_of(family)
    rows = encoded_rows(family, pairs, collator)
    keys = [RowKey(row, 0) for row in range(3)]
    with torch.no_grad():
        live = collator([rows.source[key] for key in keys])
        prompt = family.encode_prompt(live["prompt"], live["prompt_references"])
        images = {side: family.encode_pixels(live[side]) for side in ("chosen", "rejected")}
        references = [family.encode_pixels(pixels) for pixels in live["references"]]
    batch = encoded_collator(family, collator)([rows[key] for key in keys])
    assert_close(batch.pop("conditions"), prompt)
    live.pop("prompt_references")
    assert_close(batch, {**live, **images, "references": references})
    if rows.conditions is not None:
        assert len(rows.conditions) == 2


def test_nothing_is_encoded_twice(monkeypatch, cache):
    family, pairs = family_of("flux2_klein"), make_pairs(5, n_references=1)
    collator = collator_of(family)
    monkeypatch.setattr(CachedTable, "ROWS_PER_FILE", 2)
    encoded, encode_row = [], encoding.encode_row

    def failing(family, collator, row):
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(row["key"].row)
        return encode_row(family, collator, row)

    monkeypatch.setattr(encoding, "encode_row", failing)
    with pytest.raises(KeyboardInterrupt):
        encoded_rows(family, pairs, collator)
    assert encoded == [0, 1, 2]
    encoded.clear()
    rows = encoded_rows(family, pairs, collator)
    assert encoded == [2, 3, 4] and len(rows.encoded) == 5  # the first file was whole
    monkeypatch.setattr(encoding, "encode_row", None)
    monkeypatch.setattr(family, "encode_prompt", None)
    again = encoded_rows(family, pairs, collator)
    assert again.encoded[:] == rows.encoded[:]
    assert len([*cache.rglob("pairs-*.arrow")]) == 3


def test_files_are_found_by_what_they_are_made_of(monkeypatch, tmp_path):
    family, pairs = family_of("flux2_klein"), make_pairs(2, n_references=1)
    collator = collator_of(family)
    made, encode_row = [], encoding.encode_row
    monkeypatch.setattr(encoding, "encode_row", lambda *args: made.append(1) or encode_row(*args))

    def is_new(family=family, pairs=pairs, collator=collator, variants=1):
        before = len(made)
        encoded_rows(family, pairs, collator, variants)
        assert len(made) - before in (0, len(pairs) * variants)
        return len(made) > before

    assert is_new()

    assert not is_new() and not is_new(collator=collator_of(family, seed=7)) and not is_new(variants=4)
    assert not is_new(
        family_of("flux2_klein"), make_pairs(2, n_references=1).with_format(None).shuffle(seed=1).sort("prompt")
    )
    assert is_new(collator=collator_of(family, resolution=96))
    assert is_new(collator=collator_of(family, crop="center"))
    assert is_new(collator=collator_of(family, random_flip=True), variants=2)
    assert is_new(collator=collator_of(family, random_flip=True), variants=3)
    assert is_new(collator=collator_of(family, random_flip=True, seed=1), variants=3)
    assert is_new(pairs=make_pairs(2, n_references=1, seed=1))
    with torch.no_grad():
        other = family_of("flux2_klein")
        next(other.pipeline.vae.parameters())[0] += 1e-3
        assert is_new(other)
        other = family_of("flux2_klein")
        [*other.pipeline.text_encoder.parameters()][-1][0] += 1e-3
        assert is_new(other)
    other = family_of("flux2_klein")
    other.pipeline.vae.to(torch.bfloat16)
    assert is_new(other)
    other = family_of("flux2_klein")
    other.encode_prompt_kwargs = {**other.encode_prompt_kwargs, "max_sequence_length": 24}
    assert is_new(other)
    other = family_of("flux2_klein")
    other.pipeline.tokenizer.chat_template = other.pipeline.tokenizer.chat_template + " "
    assert is_new(other)
    monkeypatch.setattr(encoding, "code_of", lambda *patterns: "another release")
    assert is_new()


def test_an_image_that_changes_in_its_file_is_encoded_again(tmp_path):
    pairs = make_pairs(2)
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for image, path in zip(pairs["chosen"], paths, strict=True):
        image.save(path)
    pairs = pairs.remove_columns("chosen").add_column("chosen", paths).cast_column("chosen", datasets.Image())
    rule = collator_of(family_of("sdxl")).layout_rule
    before = prepare_preferences(pairs, rule).contents
    assert prepare_preferences(pairs, rule).contents == before
    pairs["rejected"][1].save(paths[0])
    after = prepare_preferences(pairs, rule).contents
    assert after[0] != before[0] and after[1] == before[1]


def test_new_rows_are_encoded_alone(monkeypatch):
    monkeypatch.setattr(CachedTable, "ROWS_PER_FILE", 2)
    family = family_of("sdxl")
    pairs, collator = make_pairs(6), collator_of(family)
    encoded_rows(family, pairs.select(range(4)), collator)
    made, encode_row = [], encoding.encode_row
    monkeypatch.setattr(encoding, "encode_row", lambda *args: made.append(args[2]["key"].row) or encode_row(*args))
    encoded_rows(family, pairs, collator)
    assert made == [4, 5]
    changed = pairs.map(lambda row, i: {"chosen_masks": [None] if i < 2 else row["chosen_masks"]}, with_indices=True)
    encoded_rows(family, changed, collator)
    assert made == [4, 5, 0, 1]


IDENTITY = """
from tests.trainer.test_encoding import collator_of, content_of
print(*content_of())
"""


def content_of():
    family, pairs = family_of("flux2_klein"), make_pairs(2, n_references=1)
    return encoder_identity(family), *prepare_preferences(pairs, collator_of(family).layout_rule).contents


def test_another_process_finds_the_files():
    printed = subprocess.run([sys.executable, "-c", IDENTITY], capture_output=True, text=True, check=True).stdout
    assert tuple(printed.split()) == content_of()


def test_crops_and_flips_take_turns():
    family = family_of("flux2_klein")
    pairs = make_pairs(3, size=(96, 64), n_references=1)
    collator = collator_of(family, crop="random", random_flip=True, seed=3)
    rows = encoded_rows(family, pairs, collator, variants=2)
    load = encoded_collator(family, collator)
    for epoch in range(4):
        keys = [RowKey(row, epoch) for row in range(3)]
        batch = load([rows[key] for key in keys])
        live = collator([rows.source[key._replace(epoch=epoch % 2)] for key in keys])
        with torch.no_grad():
            torch.testing.assert_close(batch["chosen"], family.encode_pixels(live["chosen"]), rtol=1e-4, atol=1e-5)
        assert torch.equal(batch["chosen_masks"], live["chosen_masks"])
        assert batch["seed"] == collator([rows.source[key] for key in keys])["seed"]  # noise never comes twice


@pytest.mark.parametrize("name", ["flux2_klein", "qwen_image_edit_plus"])
def test_dropped_prompts(name):
    family = family_of(name)
    collator = collator_of(family, caption_dropout=0.5, seed=1)
    rows = encoded_rows(family, make_pairs(6, n_references=TINY[name].references), collator)
    keys = [RowKey(row, 0) for row in range(6)]
    batch = encoded_collator(family, collator)([rows[key] for key in keys])
    live = collator([rows.source[key] for key in keys])
    assert "" in live["prompt"] and {*live["prompt"]} != {""}
    assert batch["prompt"] == live["prompt"]
    with torch.no_grad():
        assert_close(batch["conditions"], family.encode_prompt(live["prompt"], live["prompt_references"]))


def test_a_vae_that_overflows_is_refused(monkeypatch):
    family = family_of("sdxl")
    monkeypatch.setattr(family, "encode_image", lambda pixels: torch.full((len(pixels), 4, 8, 8), float("inf")))
    with pytest.raises(FloatingPointError, match="Row 0: the VAE"):
        encoded_rows(family, make_pairs(2), collator_of(family))


# ---- In a trainer ----


def losses_of(trainer) -> list[float]:
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("family", ["flux2_klein", "sdxl"])
def test_training_is_the_same(tmp_path, family):
    settings = {
        "family": family,
        "beta": 100.0,
        "eval_dataset": make_pairs(3, n_references=TINY[family].references, seed=5),
    }
    once = make_trainer(output_dir=tmp_path / "once", **settings)
    live = make_trainer(output_dir=tmp_path / "live", encode_once=False, **settings)
    assert losses_of(once) == pytest.approx(losses_of(live), rel=1e-3)
    assert once.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], rel=1e-3)


@pytest.mark.parametrize("trainer_class", [DiffusionDPOTrainer, FocusDPOTrainer])
def test_precomputed_reference_errors_are_those_of_a_step(tmp_path, monkeypatch, trainer_class):
    pairs = make_pairs(4, size=(96, 64), n_references=1)
    settings = {
        "train_dataset": pairs,
        "eval_dataset": make_pairs(3, n_references=1, seed=5),
        "max_steps": 4,  # of two epochs
        "beta": 100.0,
        "crop": "random",
        "random_flip": True,
        "caption_dropout": 0.3,
    }
    live = make_trainer(trainer_class, tmp_path / "live", **settings)
    losses, evaluated = losses_of(live), live.evaluate()["eval_loss"]
    once = make_trainer(trainer_class, tmp_path / "once", precompute_ref_errors=2, **settings)
    loader = once.get_train_dataloader()
    once.get_eval_dataloader()
    for epoch in (0, 1, 2):
        loader.set_epoch(epoch)
        for batch in loader:
            torch.testing.assert_close(batch["ref_errors"], once.reference_error(batch), rtol=1e-4, atol=1e-6)
            assert batch["seed"] == [
                once._collator(once.train_dataset, True).draws(RowKey(row, epoch % 2)).seed for row in batch["row"]
            ]
    monkeypatch.setattr(once, "_reference_prediction", None)
    assert losses_of(once) == pytest.approx(losses, rel=1e-3)
    assert once.evaluate()["eval_loss"] == pytest.approx(evaluated, rel=1e-3)
    again = make_trainer(trainer_class, tmp_path / "again", precompute_ref_errors=2, **settings)
    monkeypatch.setattr(again, "_reference_prediction", None)
    again.get_train_dataloader()  # found
    other = make_trainer(trainer_class, tmp_path / "other", precompute_ref_errors=2, **{**settings, "logit_mean": 1.0})
    monkeypatch.setattr(other, "_reference_prediction", None)
    with pytest.raises(TypeError):
        other.get_train_dataloader()  # not found
    pipeline = PIPELINES["flux2_klein"]()
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, shift=5.0)
    shifted = make_trainer(trainer_class, tmp_path / "shifted", pipeline=pipeline, precompute_ref_errors=2, **settings)
    monkeypatch.setattr(shifted, "_reference_prediction", None)
    with pytest.raises(TypeError):
        shifted.get_train_dataloader()


def test_precomputed_errors_need_encoded_rows(tmp_path):
    with pytest.raises(ValueError, match="does not go with streams"):
        make_trainer(output_dir=tmp_path, train_dataset=make_pairs(4).to_iterable_dataset(), precompute_ref_errors=1)
    with pytest.raises(ValueError, match="goes with `encode_once=True`"):
        make_trainer(output_dir=tmp_path, precompute_ref_errors=1, encode_once=False)


@pytest.mark.parametrize(
    ("trainer_class", "family"),
    [
        (FocusDPOTrainer, "flux2_klein"),  # whose map reads each forward
        (DiffusionDPOTrainer, "flux2_klein"),
        (DiffusionDPOTrainer, "z_image"),
        (DiffusionDPOTrainer, "sdxl"),
    ],
)
def test_one_forward_or_two_have_the_same_gradients(tmp_path, family, trainer_class):
    gradients = []
    for one_forward in (True, False):
        trainer = make_trainer(
            trainer_class, tmp_path, family, PIPELINES[family](), one_forward=one_forward, beta=100.0, max_steps=1
        )
        calls = []
        trainer.family.denoiser.register_forward_pre_hook(lambda module, args, calls=calls: calls.append(1))
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, batch)
        assert len(calls) == (2 if one_forward else 4)  # the reference's, and the policy's
        loss.backward()
        assert len(calls) == (2 if one_forward else 5)  # what the first forward would have kept
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_encoders_leave_the_device(tmp_path, monkeypatch):
    where = []  # in turn
    move = DiffusionDPOTrainer._move_encoders
    monkeypatch.setattr(DiffusionDPOTrainer, "_move_encoders", lambda self, device: where.append(str(device)))
    monkeypatch.setattr("transformers.TrainingArguments.device", torch.device("meta"))  # an accelerator's part
    monkeypatch.setattr("trl_focus.trainer.diffusion_dpo_trainer._BaseTrainer.__init__", Stop.when_called)
    with pytest.raises(Stop):
        make_trainer(output_dir=tmp_path / "once")
    assert where == ["meta", "cpu", "cpu"]  # for the time of the encoding
    where.clear()
    with pytest.raises(Stop):
        make_trainer(output_dir=tmp_path / "live", encode_once=False)
    assert where == ["meta"]  # to stay
    monkeypatch.setattr(DiffusionDPOTrainer, "_move_encoders", move)
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: moved.append(device))
    trainer = DiffusionDPOTrainer.__new__(DiffusionDPOTrainer)
    trainer.family = family_of("sdxl")
    trainer.family.pipeline.text_encoder.hf_quantizer = object()
    trainer._move_encoders(torch.device("meta"))
    assert len(moved) == len(trainer.family.encoders) - 1


class Stop(Exception):  # noqa: N818
    @staticmethod
    def when_called(*args, **kwargs):
        raise Stop
