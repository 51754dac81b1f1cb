# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json
import math
import traceback
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from peft import LoraConfig
from transformers import TrainerCallback

from tests.fixtures.pairs import make_pairs
from tests.fixtures.pipelines import PIPELINES, PROMPT_KWARGS, TINY
from tests.fixtures.trainers import assert_equal_weights, lora_of, make_args, make_trainer
from trl_focus import DiffusionDPOConfig, DiffusionDPOTrainer, FocusDPOTrainer, PreferenceCollapseCallback


def train_logs(trainer):
    return [logs for logs in trainer.state.log_history if "loss" in logs]


def eval_logs(trainer):
    return [logs for logs in trainer.state.log_history if "eval_loss" in logs]


@pytest.mark.parametrize("family", PIPELINES)
def test_training_changes_the_lora_and_nothing_else(tmp_path, family):
    trainer = make_trainer(output_dir=tmp_path, family=family)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    encoders = [p.clone() for module in trainer.family.encoders for p in module.parameters()]
    trainer.train()
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name]) != ("lora_" in name), name
    for old, new in zip(encoders, (p for m in trainer.family.encoders for p in m.parameters()), strict=True):
        assert torch.equal(old, new)
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_it_learns_what_it_is_shown(tmp_path):
    """One pair again and again: the policy comes to prefer the chosen image, and does so on its evaluation too."""
    data = make_pairs(1, n_references=1)
    trainer = make_trainer(
        output_dir=tmp_path, train_dataset=data, eval_dataset=data, max_steps=40, beta=500, learning_rate=1e-3
    )
    trainer.train()
    logs = train_logs(trainer)
    assert sum(log["loss"] for log in logs[-5:]) / 5 < 0.4 < 0.69 < logs[0]["loss"]
    metrics = trainer.evaluate()
    assert metrics["eval_rewards/accuracies"] == 1.0 and metrics["eval_rewards/margins"] > 0.5


def test_logged_metrics(tmp_path):
    trainer = make_trainer(output_dir=tmp_path, eval_dataset=make_pairs(4, n_references=2, seed=1), logging_steps=2)
    trainer.train()
    logs = train_logs(trainer)[0]
    trainer.evaluate()
    for prefix, log in (("", logs), ("eval_", eval_logs(trainer)[0])):
        chosen, rejected = log[f"{prefix}rewards/chosen"], log[f"{prefix}rewards/rejected"]
        assert log[f"{prefix}rewards/margins"] == pytest.approx(chosen - rejected, abs=1e-4)
        assert 0 <= log[f"{prefix}rewards/accuracies"] <= 1
        # with uniform weights the rewards are the errors, in other units
        assert log[f"{prefix}errors/chosen"] == pytest.approx(-chosen / 1000, rel=1e-3)
        assert log[f"{prefix}errors/rejected"] == pytest.approx(-rejected / 1000, rel=1e-3)
        assert 0 < log[f"{prefix}gradient_factor"] < 1
        assert any(key.startswith(f"{prefix}rewards/margins/level_") for key in log)
    assert "beta" not in logs


def test_metrics_by_noise_level_add_up(tmp_path):
    trainer = make_trainer(output_dir=tmp_path, train_dataset=make_pairs(16, n_references=0))
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.05)
    batch = next(iter(trainer.get_train_dataloader()))
    levels = {}
    draw = trainer._noise
    trainer._noise = lambda *args: levels.setdefault("noised", draw(*args))
    _, outputs = trainer.compute_loss(trainer.model.train(), batch, return_outputs=True)
    logged = trainer._metrics["train"].pop(trainer.accelerator)
    level = levels["noised"].level_B[:2]
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (level >= low) & (level < low + 0.25)
        key = f"rewards/margins/level_{low:.2f}-{low + 0.25:.2f}"
        if inside.any():
            assert logged[key] == pytest.approx(outputs["rewards"][inside].mean().item(), rel=1e-5)
        else:
            assert key not in logged


def plain_batches(trainer_kwargs, tmp_path, **kwargs):
    trainer = make_trainer(output_dir=tmp_path, **trainer_kwargs, **kwargs)
    trainer.train()
    return lora_of(trainer), train_logs(trainer)


@pytest.mark.parametrize("n", [8, 6], ids=["full batches", "smaller last batch"])
def test_accumulation_equals_the_larger_batch(tmp_path, n):
    """Loss, metrics and weights count pairs, however an update is cut into batches; the last update has fewer pairs."""
    settings = {
        "train_dataset": make_pairs(n, n_references=1),
        "train_sampling_strategy": "sequential",
        "max_steps": -1,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "beta": 20.0,
    }
    large, large_logs = plain_batches(settings, tmp_path, per_device_train_batch_size=4)
    for size, steps in [(1, 4), (2, 2)]:
        small, small_logs = plain_batches(
            settings, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps
        )
        assert len(small_logs) == len(large_logs) == 4
        for one, other in zip(large_logs, small_logs, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert one["rewards/margins"] == pytest.approx(other["rewards/margins"], rel=1e-3, abs=1e-4)
        for name, value in large.items():
            torch.testing.assert_close(small[name], value, rtol=1e-3, atol=1e-5)


def test_evaluation_depends_on_rows_alone(tmp_path):
    """Not on the batch size, nor on the layouts it is batched by, nor on the state of any generator."""
    data = make_pairs(7, n_references=[0, 1, 0, 2, 1, 0, 0], seed=3)
    metrics = []
    for size in (1, 3, 8):
        trainer = make_trainer(output_dir=tmp_path, eval_dataset=data, per_device_eval_batch_size=size)
        trainer.train()
        torch.rand(size)
        metrics.append({k: v for k, v in trainer.evaluate().items() if "runtime" not in k and "per_second" not in k})
    assert metrics[0]["eval_loss"] != pytest.approx(math.log(2), abs=1e-4)
    for other in metrics[1:]:
        assert other == pytest.approx(metrics[0], rel=1e-4, abs=1e-4)
    one_by_one = []
    for row in range(len(data)):
        one = trainer.evaluate(data.select([row]))  # row 0 of its own dataset: another draw than in the whole
        one_by_one.append(one["eval_loss"])
    assert len({*one_by_one}) == len(data)


def test_evaluation_does_not_disturb_training(tmp_path):
    weights = []
    for strategy in ("no", "steps"):
        trainer = make_trainer(
            output_dir=tmp_path,
            eval_dataset=make_pairs(3, n_references=2, seed=1),
            eval_strategy=strategy,
            eval_steps=1,
        )
        trainer.train()
        weights.append(lora_of(trainer))
    assert_equal_weights(*weights)


def test_several_evaluation_sets(tmp_path):
    sets = {"small": make_pairs(2, n_references=2, seed=1), "large": make_pairs(4, n_references=0, seed=2)}
    trainer = make_trainer(
        output_dir=tmp_path,
        eval_dataset=sets,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_large_rewards/margins",
        greater_is_better=True,
    )
    trainer.train()
    logged = {key for logs in trainer.state.log_history for key in logs}
    assert {"eval_small_loss", "eval_large_loss", "eval_large_rewards/margins"} <= logged
    assert trainer.state.best_model_checkpoint


def test_best_model_is_loaded_at_the_end(tmp_path):
    trainer = make_trainer(
        output_dir=tmp_path,
        eval_dataset=make_pairs(4, n_references=2, seed=1),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        max_steps=4,
    )
    trainer.train()
    losses = [logs["eval_loss"] for logs in eval_logs(trainer)]
    assert losses.index(min(losses)) != len(losses) - 1, "the last is the best: nothing would be loaded"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


def test_mixed_layouts_use_every_row_once_an_epoch(tmp_path):
    sizes = [(64, 64)] * 5 + [(96, 64)] * 4 + [(64, 128)] * 2
    data = make_pairs(11, size=sizes, n_references=[0, 0, 1, 1, 1, 0, 0, 0, 2, 0, 0])
    trainer = make_trainer(output_dir=tmp_path, train_dataset=data, max_steps=-1, num_train_epochs=2)
    seen = []
    compute_loss = trainer.compute_loss

    def record(model, inputs, **kwargs):
        seen.append((inputs["row"], inputs["chosen"].shape))
        return compute_loss(model, inputs, **kwargs)

    trainer.compute_loss = record
    trainer.train()
    rows = [row for batch, _ in seen for row in batch]
    assert sorted(rows[:11]) == sorted(rows[11:]) == list(range(11)) and rows[:11] != rows[11:]
    assert trainer.state.epoch == 2
    assert len({shape[2:] for _, shape in seen}) == 3


def test_streamed_data(tmp_path):
    data = make_pairs(7, n_references=[0, 1, 0, 1, 0, 1, 0])
    trainer = make_trainer(
        output_dir=tmp_path,
        train_dataset=data.to_iterable_dataset(),
        eval_dataset=data.to_iterable_dataset(),
        max_steps=6,
        encode_once=False,
    )
    before = lora_of(trainer)
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in lora_of(trainer).items())
    streamed = trainer.evaluate()
    whole = trainer.evaluate(data)
    assert streamed["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-5)


def test_model_from_a_folder(tmp_path):
    PIPELINES["flux2_klein"]().save_pretrained(tmp_path / "base")
    args = make_args(DiffusionDPOConfig, tmp_path / "out", model_init_kwargs={"dtype": "bfloat16"})
    trainer = DiffusionDPOTrainer(str(tmp_path / "base"), args=args, train_dataset=make_pairs(4))
    assert trainer.family.denoiser.x_embedder.weight.dtype == torch.bfloat16
    trainer.train()
    assert [*trainer.pipeline.config] == [*DiffusionPipeline.from_pretrained(tmp_path / "base").config]


@pytest.mark.parametrize("family", ["flux2_klein", "sdxl"])
def test_what_is_saved_loads_in_diffusers(tmp_path, family):
    lora = LoraConfig(r=4, lora_alpha=12, init_lora_weights="gaussian")
    trainer = make_trainer(
        output_dir=tmp_path, family=family, peft_config=lora, max_steps=2, save_strategy="steps", save_steps=2
    )
    trainer.train()
    trainer.save_model()

    def sample(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            prompt="a cat",
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            width=96,
            height=64,
            **TINY[family].call_kwargs,
            **PROMPT_KWARGS[family],
        ).images

    base, trained = sample(PIPELINES[family]()), sample(trainer.pipeline)
    assert (trained - base).abs().max() > 1e-3
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        assert {"pytorch_lora_weights.safetensors", "adapter_model.safetensors", "README.md"} <= {
            path.name for path in folder.iterdir()
        }
        fresh = PIPELINES[family]()
        fresh.load_lora_weights(folder)
        torch.testing.assert_close(sample(fresh), trained, rtol=0, atol=1e-4)
    card = ModelCard.load(tmp_path / "README.md")
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "diffusers" and "diffusion-dpo" in metadata["tags"]
    assert f"{type(trainer.pipeline).__name__}.from_pretrained" in card.text and "4, 12" in card.text


def test_continuing_a_loaded_lora(tmp_path):
    first = make_trainer(output_dir=tmp_path / "first", peft_config=LoraConfig(r=4, lora_alpha=12))
    first.train()
    first.save_model()
    pipeline = PIPELINES["flux2_klein"]()
    pipeline.load_lora_weights(tmp_path / "first")
    second = make_trainer(output_dir=tmp_path / "second", pipeline=pipeline)
    config = second.model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (4, 12)
    assert_equal_weights(lora_of(second), lora_of(first))
    second.train()
    second.save_model()
    fresh = PIPELINES["flux2_klein"]()
    fresh.load_lora_weights(tmp_path / "second")
    assert fresh.transformer.peft_config[fresh.get_active_adapters()[0]].lora_alpha == 12


class TestReference:
    def train(self, tmp_path, **kwargs):
        trainer = make_trainer(output_dir=tmp_path, **kwargs)
        trainer.train()
        return trainer

    def test_a_model_equal_to_the_base_is_the_adapter_off(self, tmp_path):
        off = self.train(tmp_path)
        base = PIPELINES["flux2_klein"]()
        base.save_pretrained(tmp_path / "base")
        for ref_model in (base, base.transformer):
            given = self.train(tmp_path, ref_model=ref_model)
            assert given.reference == "model"
            assert_equal_weights(lora_of(off), lora_of(given))
        by_name = self.train(tmp_path, ref_model=str(tmp_path / "base"))
        for name, value in lora_of(off).items():  # weights read from a file round differently in the last bits
            torch.testing.assert_close(lora_of(by_name)[name], value, rtol=1e-2, atol=1e-3)

    def test_another_model_is_another_reference(self, tmp_path):
        other = self.train(tmp_path, ref_model=PIPELINES["flux2_klein"](seed=1))
        assert abs(train_logs(other)[0]["rewards/margins"]) > 1e-3

    def test_initial_adapter(self, tmp_path):
        self.train(tmp_path / "first").save_model()

        def pipeline():
            pipeline = PIPELINES["flux2_klein"]()
            pipeline.load_lora_weights(tmp_path / "first")
            return pipeline

        off = self.train(tmp_path, pipeline=pipeline())
        frozen = self.train(tmp_path, pipeline=pipeline(), reference="initial_adapter")
        assert train_logs(frozen)[0]["rewards/chosen"] == 0
        assert abs(train_logs(off)[0]["rewards/chosen"]) > 1e-3
        weights = dict(frozen.model.named_parameters())
        moved = 0
        for name, value in weights.items():
            if ".ref." in name:
                start = dict(off.model.named_parameters())  # what the first run ended with is where both began
                assert not value.requires_grad and name.replace(".ref.", ".default.") in start
                moved += not torch.equal(value, weights[name.replace(".ref.", ".default.")])
        assert moved
        frozen.save_model()
        fresh = PIPELINES["flux2_klein"]()
        fresh.load_lora_weights(tmp_path)
        assert len(fresh.get_active_adapters()) == 1


class TestBetaController:
    def test_beta_moves_and_is_logged(self, tmp_path):
        trainer = make_trainer(
            output_dir=tmp_path,
            target_gradient_factor=0.3,
            beta=100.0,
            beta_warmup_steps=2,
            max_steps=6,
            learning_rate=1e-4,
        )
        trainer.train()
        betas = [logs["beta"] for logs in train_logs(trainer)]
        factors = [logs["gradient_factor"] for logs in train_logs(trainer)]
        assert betas[:2] == [100.0, 100.0]
        expected = 100.0
        for beta, factor in zip(betas[2:], factors[2:], strict=True):
            expected *= math.exp(0.05 * (factor - 0.3))
            assert beta == pytest.approx(expected, rel=1e-5)
        assert betas[-1] > 100.0

    def test_beta_in_force_is_the_one_in_the_loss(self, tmp_path):
        trainer = make_trainer(
            output_dir=tmp_path, target_gradient_factor=0.3, loss_type=["sigmoid", "sft"], beta=100.0
        )
        batch = next(iter(trainer.get_train_dataloader()))
        one = trainer.compute_loss(trainer.model, batch).item() - math.log(2)
        trainer.beta_controller.load_state_dict({"beta": 200.0, "steps": 0})
        other = trainer.compute_loss(trainer.model, batch).item() - math.log(2)
        assert other == pytest.approx(2 * one, rel=1e-4)


class Poison:
    """Makes the error of one row not finite from a step on, in the policy's own forward."""

    def __init__(self, trainer, row, step):
        predict = trainer.family.predict
        rows = []
        compute_loss = trainer.compute_loss

        def record(model, inputs, **kwargs):
            rows[:] = inputs["row"]
            return compute_loss(model, inputs, **kwargs)

        def poisoned(denoiser, *args):
            prediction = predict(denoiser, *args)
            if row in rows and trainer.state.global_step + 1 >= step and prediction.requires_grad:
                prediction = prediction.clone()
                prediction[rows.index(row)] *= float("nan")
            return prediction

        trainer.compute_loss, trainer.family.predict = record, poisoned


class TestNotFinite:
    def poisoned(self, tmp_path, **kwargs):
        trainer = make_trainer(
            output_dir=tmp_path, train_sampling_strategy="sequential", max_steps=8, save_strategy="steps", **kwargs
        )
        Poison(trainer, row=5, step=3)  # rows 4 and 5 are step 3
        weights = {}

        class Keep(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                weights[state.global_step] = lora_of(trainer)

        trainer.add_callback(Keep())
        return trainer, weights

    def test_training_stops_and_names_the_row(self, tmp_path):
        trainer, weights = self.poisoned(tmp_path, save_steps=2)
        with pytest.raises(FloatingPointError, match=r"row 5 \(step 3\).*checkpoint-2"):
            trainer.train()
        assert_equal_weights(weights[2], weights[3])
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["checkpoint-2"]

    def test_only_at_the_next_log_and_the_update_is_skipped(self, tmp_path):
        trainer, weights = self.poisoned(tmp_path, save_steps=100, logging_steps=4)
        with pytest.raises(FloatingPointError, match=r"row 5 \(step 3\)"):
            trainer.train()
        assert max(weights) == 4
        assert_equal_weights(weights[2], weights[3])
        assert all(value.isfinite().all() for value in weights[4].values())
        assert any(not torch.equal(value, weights[3][name]) for name, value in weights[4].items())

    def test_nothing_is_saved_from_a_bad_stretch(self, tmp_path):
        trainer, _ = self.poisoned(tmp_path, save_steps=3, logging_steps=100)
        with pytest.raises(FloatingPointError, match="row 5"):
            trainer.train()
        assert not any(path.is_dir() for path in tmp_path.iterdir())

    def test_a_gradient_that_is_not_finite_stops_too(self, tmp_path):
        trainer = make_trainer(output_dir=tmp_path)
        parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
        parameter.register_hook(lambda gradient: gradient * float("inf"))
        before = lora_of(trainer)
        with pytest.raises(FloatingPointError, match="gradient"):
            trainer.train()
        assert_equal_weights(before, lora_of(trainer))


@pytest.mark.parametrize("trainer_class", [DiffusionDPOTrainer, FocusDPOTrainer])
def test_nothing_of_ours_waits_for_the_device_between_logs(trainer_class, tmp_path, monkeypatch):
    """What reads a tensor on the host makes the host wait; between logs, no frame of this package may."""
    waits = []

    def spy(name):
        original = getattr(torch.Tensor, name)

        def wrapped(tensor, *args, **kwargs):
            frames = [frame for frame in traceback.extract_stack() if "/trl_focus/" in frame.filename]
            # reading a batch happens before it is on the device, encoding calls the pipeline's own methods, and
            # `train` is where transformers' own loop waits
            encoding = any("/data/" in f.filename or f.name in ("_encode", "_position_ids") for f in frames)
            if frames and not encoding and frames[-1].name != "train":
                waits.append((name, frames[-1].filename, frames[-1].name))
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, wrapped)

    settings = {"logging_steps": 3, "target_gradient_factor": 0.3, "beta_warmup_steps": 0}
    trainer = make_trainer(trainer_class, tmp_path, **settings)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero"):
        spy(name)
    trainer.train()
    assert {name for _, _, name in waits} <= {"check", "check_finite", "pop", "log"}
    assert waits  # the reads at the log itself were seen


class CollapsingLogs(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        self.trainer._metrics["train"]._sums.update(
            {
                "errors/chosen": torch.tensor([float(state.global_step), 1.0]),
                "rewards/accuracies": torch.tensor([1.0, 1.0]),
            }
        )


def test_collapse_stops_training_when_asked(tmp_path):
    logs = CollapsingLogs()
    trainer = make_trainer(
        output_dir=tmp_path, max_steps=20, callbacks=[logs, PreferenceCollapseCallback(patience=3, stop=True)]
    )
    logs.trainer = trainer
    trainer.train()
    assert trainer.state.global_step == 6
    watches = [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, PreferenceCollapseCallback)]
    assert len(watches) == 1


def test_a_warning_watch_is_there_by_default(tmp_path):
    trainer = make_trainer(output_dir=tmp_path)
    watches = [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, PreferenceCollapseCallback)]
    assert [watch.stop for watch in watches] == [False]


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradient_checkpointing_changes_nothing(tmp_path, checkpointing):
    trainer = make_trainer(output_dir=tmp_path, gradient_checkpointing=checkpointing)
    trainer.train()
    assert trainer.family.denoiser.gradient_checkpointing is checkpointing
    plain = make_trainer(output_dir=tmp_path, gradient_checkpointing=False)
    plain.train()
    assert_equal_weights(lora_of(trainer), lora_of(plain))


def test_reports_to_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    trainer = make_trainer(output_dir=tmp_path / "out", report_to="tensorboard")
    trainer.train()
    assert [*(tmp_path / "runs").rglob("events.out.tfevents.*")]


def test_dropout_of_lora_is_switched_off(tmp_path):
    trainer = make_trainer(output_dir=tmp_path, peft_config=LoraConfig(r=4, lora_dropout=0.5))
    assert all(module.p == 0 for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout))


def test_default_arguments_write_to_a_folder_named_after_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PIPELINES["sd15"]().save_pretrained(tmp_path / "my-base")
    trainer = DiffusionDPOTrainer(str(tmp_path / "my-base"), train_dataset=make_pairs(2))
    assert trainer.args.output_dir == "my-base-Diffusion-DPO" and isinstance(trainer.args, DiffusionDPOConfig)
    assert trainer.layout_rule.resolution == 64  # what the pipeline makes by default


def test_state_of_a_checkpoint_is_readable(tmp_path):
    trainer = make_trainer(output_dir=tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    state = json.loads((Path(tmp_path) / "checkpoint-3" / "diffusion_dpo_state.json").read_text())
    assert state == {
        "family": "Flux2",
        "denoiser": "Flux2Transformer2DModel",
        "reference": "adapter_off",
        "beta_controller": None,
        "update": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "processes": 1},
    }


def test_training_twice_and_evaluating_before(tmp_path):
    trainer = make_trainer(output_dir=tmp_path, eval_dataset=make_pairs(3, n_references=2, seed=1))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2))
    trainer.save_model()
    first = lora_of(trainer)
    trainer.train()
    second = lora_of(trainer)
    trainer.train()
    assert all(not torch.equal(value, first[name]) for name, value in second.items())
    assert any(not torch.equal(value, second[name]) for name, value in lora_of(trainer).items())
    assert len(train_logs(trainer)) == 3


def test_a_second_trainer_continues_what_the_first_one_trained(tmp_path):
    first = make_trainer(output_dir=tmp_path)
    first.train()
    trained = lora_of(first)
    second = make_trainer(output_dir=tmp_path, pipeline=first.pipeline, reference="initial_adapter")
    assert_equal_weights(lora_of(second), trained)
    third = make_trainer(output_dir=tmp_path, pipeline=second.pipeline, reference="initial_adapter")
    assert_equal_weights(lora_of(third), trained)
    third.train()


@pytest.mark.parametrize("family", ["sd15", "flux2_klein"])
def test_a_pipeline_in_half_precision_samples_as_before(tmp_path, family):
    pipeline = PIPELINES[family]().to(torch.float16 if family == "sd15" else torch.bfloat16)
    trainer = make_trainer(output_dir=tmp_path, family=family, pipeline=pipeline, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer._encode(batch)[0].isfinite().all()
    for name, module in trainer.family.modules.items():
        expected = torch.float16 if family == "sd15" else torch.bfloat16
        frozen = [p.dtype for n, p in module.named_parameters() if "lora_" not in n]
        assert {*frozen} == {expected}, name


def test_rows_keep_their_names_where_ties_are_dropped(tmp_path):
    data = make_pairs(4, n_references=0)
    rows = [*data]
    rows[0]["rejected"] = rows[0]["chosen"]
    trainer = make_trainer(
        output_dir=tmp_path, train_dataset=data.from_list(rows, features=data.features), ties="drop"
    )
    named = [row for batch in trainer.get_train_dataloader() for row in batch["row"]]
    assert sorted(named) == [1, 2, 3]


def test_misspelt_encode_prompt_kwargs_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="encode_prompt_kwargs.*max_lenght.*max_sequence_length"):
        make_trainer(output_dir=tmp_path, encode_prompt_kwargs={"max_lenght": 3})


def test_offloaded_pipelines_are_refused(tmp_path):
    pipeline = PIPELINES["sd15"]()
    pipeline.vae._hf_hook = object()
    with pytest.raises(ValueError, match="remove_all_hooks"):
        make_trainer(output_dir=tmp_path, family="sd15", pipeline=pipeline)


def test_prediction_takes_a_dataset(tmp_path):
    trainer = make_trainer(output_dir=tmp_path)
    assert math.isfinite(trainer.predict(make_pairs(2, n_references=1)).metrics["test_loss"])
