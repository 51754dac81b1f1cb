# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json

import pytest
import torch

from tests.fixtures.families import PROMPTS, Spy, as_pixels, assert_same, check_calls, encoded, family_of, picture
from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import NO_GUIDANCE
from tests.fixtures.qwen_image import REFERENCE_AREA, tiny_qwen_image_edit_plus
from tests.fixtures.trainers import make_trainer
from trl_focus.families.qwen_image import QwenImageEditPlus
from trl_focus.trainer import pipeline as loading


def test_edit_2509_takes_references_as_noisy_as_the_target(monkeypatch):
    """Without `zero_cond_t`; with it is in the suite."""
    family = QwenImageEditPlus(tiny_qwen_image_edit_plus(zero_cond_t=False))
    check_calls(family, "qwen_image_edit_plus", [picture(64, 80, 0), picture(100, 71, 1)], 96, 64, monkeypatch)


def test_prompts_encoder_of_edit_plus_sees_the_original_in_another_size():
    family = family_of("qwen_image_edit_plus")
    image = picture(300, 210, 0)
    for resolution, size in ((None, (160, 96)), (64, (64, 64))):
        rule = family.reference_rule(resolution)
        assert rule.prepare(image).size == size
        seen = rule.prepare_for_prompt(image)
        assert seen.size == (128, 96) == family.reference_rule(64).prepare_for_prompt(image).size
        assert seen.tobytes() == image.resize(seen.size, resample=1).tobytes()  # not of the prepared one
    with pytest.raises(ValueError, match="too long and thin"):
        rule.size(3000, 10)


@pytest.mark.parametrize("name", ["qwen_image_edit", "qwen_image_edit_plus", "qwen_image_21"])
def test_prompt_embeddings_depend_on_the_references(name):
    family = family_of(name)
    one, other = (encoded(family, PROMPTS[:1], [[picture(64, 80, seed)]])[0]["prompt_embeds"] for seed in (0, 1))
    assert one.shape == other.shape and (one - other).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["qwen_image_edit_plus", "qwen_image_21"])
def test_batches_give_the_prompts_encoder_each_row_its_own(name, tmp_path):
    trainer = make_trainer(output_dir=tmp_path, family=name)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["prompt"]) == 2
    _, prompt, _ = trainer._encode(batch)
    rows = trainer.train_dataset.dataset
    for i, row in enumerate(batch["row"]):
        seen = [trainer.layout_rule.references.prepare_for_prompt(image) for image in rows[row]["references"]]
        with torch.no_grad():
            alone = trainer.family.encode_prompt([rows[row]["prompt"]], [seen])
        length = alone["prompt_embeds"].shape[1]
        for offset in (0, 2):  # of chosen and of rejected
            torch.testing.assert_close(prompt["prompt_embeds"][i + offset, :length], alone["prompt_embeds"][0])


@pytest.mark.parametrize("name,counts", [("qwen_image_edit", [1, 2]), ("qwen_image_edit_plus", [1, 0])])
def test_rows_with_too_many_or_too_few_references_are_refused(name, counts, tmp_path):
    takes = "exactly 1" if name == "qwen_image_edit" else "at least 1"
    with pytest.raises(ValueError, match=f"row 1: `references` holds .* images, and this model takes {takes}"):
        make_trainer(output_dir=tmp_path, family=name, train_dataset=make_pairs(2, n_references=counts))


def test_processor_without_torchvision(tmp_path, monkeypatch):
    """Refused before anything is loaded, but for who brings one that does without."""
    pipeline = tiny_qwen_image_edit_plus()
    pipeline.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["processor"][1] == "Qwen2VLProcessor"
    monkeypatch.setattr(loading, "is_torchvision_available", lambda: False)
    settings = {"output_dir": tmp_path, "family": "qwen_image_edit_plus", "pipeline": str(tmp_path / "model")}
    with pytest.raises(ImportError, match="`processor` is a Qwen2VLProcessor.*`pip install torchvision`"):
        make_trainer(**settings)
    trainer = make_trainer(**settings, model_init_kwargs={"processor": pipeline.processor})
    assert trainer.pipeline.processor is pipeline.processor


def test_batch_of_2_1_is_the_pipelines_own(monkeypatch):
    """Prompts of two lengths, where padding moves the target."""
    family = family_of("qwen_image_21")
    spy = Spy(family, monkeypatch)
    images = [picture(64, 80, 0)]
    family.pipeline(
        PROMPTS, image=images, width=96, height=64, num_inference_steps=1, use_kv_cache=False, output_type="latent"
    )
    (call,), ((_, timestep, sample),) = spy.calls, spy.steps
    prompt, references = encoded(family, PROMPTS, [images] * 2)
    x = sample.transpose(1, 2).unflatten(2, (4, 6))
    with torch.no_grad():
        family.predict(family.denoiser, x, timestep.expand(2) / 1000, prompt, references)
    assert "encoder_hidden_states_mask" in call
    assert_same(spy.calls[-1], call, 1e-4, "call")


def test_cache_of_2_1_changes_nothing():
    """The pipeline's own sampling keeps text and references of the first step; the suite compares it without that."""
    pipeline = family_of("qwen_image_21").pipeline
    one, other = (
        pipeline(
            PROMPTS[0],
            image=[picture(64, 80, 0)],
            width=96,
            height=64,
            num_inference_steps=3,
            use_kv_cache=cached,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **NO_GUIDANCE,
        ).images
        for cached in (False, True)
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_sides_of_2_1_are_multiples_of_two_cells(tmp_path):
    data = make_pairs(2, n_references=2, size=[(120, 80)] * 2)  # 80x48 in multiples of a cell
    trainer = make_trainer(output_dir=tmp_path, family="qwen_image_21", train_dataset=data, encode_once=False)
    assert (trainer.family.cell_size, trainer.layout_rule.multiple) == (16, 32)
    batch = next(iter(trainer.get_train_dataloader()))
    assert all(side % 32 == 0 for side in batch["chosen"].shape[-2:])
    assert trainer.family.encode_image(as_pixels(picture(96, 64, 0))).shape[-2:] == (4, 6)
    assert REFERENCE_AREA == 128**2
