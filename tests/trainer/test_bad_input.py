# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What can't be trained is refused with the field or the row and the way out, before anything is written or changed."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from datasets import DatasetDict
from diffusers import (
    BitsAndBytesConfig,
    DDPMPipeline,
    DDPMScheduler,
    Flux3ModularPipeline,
    PipelineQuantizationConfig,
    UNet2DModel,
)
from peft import IA3Config, LoraConfig
from transformers import TrainingArguments

from tests.fixtures.pairs import dataset_of, make_pairs, random_image, random_mask
from tests.fixtures.pipelines import PIPELINES
from tests.fixtures.trainers import lora_of, make_args, make_trainer
from trl_focus import (
    DiffusionDPOConfig,
    DiffusionDPOTrainer,
    FocusDPOTrainer,
    FocusMapCallback,
)


TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def state_of(pipeline) -> dict:
    """All that a refusal must leave as it was: modules, weights, what is trained, LoRA."""
    state = {}
    for name, part in pipeline.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        state[name] = type(part)
        state[f"{name} modules"] = {key: (type(module), module.training) for key, module in part.named_modules()}
        state[f"{name} lora"] = sorted(getattr(part, "peft_config", {}))
        for key, value in part.named_parameters():
            state[f"{name}.{key}"] = value.detach().clone(), value.requires_grad
    return state


def assert_same(one: dict, other: dict):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, tuple) and isinstance(value[0], torch.Tensor):
            assert torch.equal(value[0], other[key][0]) and value[1] == other[key][1], key
        else:
            assert value == other[key], key


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def with_lora(name="sd15", **kwargs):
    pipeline = PIPELINES[name]()
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    denoiser.add_adapter(LoraConfig(**{"r": 2, "lora_alpha": 2, "target_modules": TARGETS, **kwargs}), "style")
    return pipeline


class Refused:
    """
    Expects a refusal of a pipeline by a constructor, with nothing written to `folder` and nothing changed in the pipeline.
    """

    def __init__(self, error, match, folder, *pipelines):
        self.raises = pytest.raises(error, match=match)
        self.folder, self.pipelines = folder, pipelines

    def __enter__(self):
        self.before = [state_of(pipeline) for pipeline in self.pipelines]
        self.random = torch.get_rng_state()
        return self.raises.__enter__()

    def __exit__(self, *raised):
        result = self.raises.__exit__(*raised)
        assert files(self.folder) == []
        for pipeline, before in zip(self.pipelines, self.before, strict=True):
            assert_same(state_of(pipeline), before)
        assert torch.equal(torch.get_rng_state(), self.random)
        return result


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(2)


@pytest.fixture
def pipeline():
    return PIPELINES["sd15"]()


def make(pipeline, out, pairs, trainer_class=DiffusionDPOTrainer, args=None, config=None, **kwargs):
    args = args or make_args(trainer_class._config_class, out, "sd15", **(config or {}))
    return trainer_class(pipeline, args=args, train_dataset=pairs, **kwargs)


def test_what_is_refused_below_would_train_otherwise(pipeline, out, pairs):
    make(pipeline, out, pairs, FocusDPOTrainer).train()


class TestModel:
    def test_unknown_class(self, out, pairs):
        unet = UNet2DModel(
            sample_size=8,
            block_out_channels=(8,),
            norm_num_groups=2,
            layers_per_block=1,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
        )
        pipeline = DDPMPipeline(unet, DDPMScheduler())
        message = (
            "DDPMPipeline is no pipeline of a known family. Known are: Flux2KleinPipeline, .*StableDiffusionXLPipel"
        )
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs)

    def test_unknown_class_in_a_folder_is_refused_before_its_weights_are_read(self, out, pairs, tmp_path):
        index = {"_class_name": "FooPipeline", "_diffusers_version": "0.40.0", "unet": ["diffusers", "UNet2DModel"]}
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
        with Refused(ValueError, "FooPipeline is no pipeline of a known family", out):
            make(str(tmp_path / "model"), out, pairs)

    @pytest.mark.parametrize("given_args", [True, False])
    def test_bare_denoiser(self, pipeline, out, pairs, given_args, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        args = make_args(DiffusionDPOConfig, out) if given_args else None
        message = "`model` must be .*, got UNet2DConditionModel. Give the whole pipeline"
        with Refused(TypeError, message, tmp_path, pipeline):
            DiffusionDPOTrainer(pipeline.unet, args=args, train_dataset=pairs)

    def test_no_model(self, out, pairs):
        with Refused(TypeError, "`model` must be .*, got NoneType", out):
            make(None, out, pairs)

    def test_folder_as_a_path_is_taken(self, pipeline, out, pairs, tmp_path):
        pipeline.save_pretrained(tmp_path / "model")
        assert make(tmp_path / "model", out, pairs).pipeline.name_or_path == str(tmp_path / "model")

    def test_unet_that_was_distilled(self, pipeline, out, pairs):
        pipeline.unet.register_to_config(time_cond_proj_dim=8)
        with Refused(ValueError, "distilled for few steps.*Train the UNet it was distilled from", out, pipeline):
            make(pipeline, out, pairs)

    @pytest.mark.parametrize("name", ["vae", "text_encoder", "tokenizer", "scheduler", "unet"])
    def test_missing_component(self, pipeline, out, pairs, name):
        setattr(pipeline, name, None)
        with Refused(ValueError, f"The pipeline has no `{name}`, and training needs it", out):
            make(pipeline, out, pairs)

    def test_missing_component_in_a_folder_is_refused_before_its_weights_are_read(self, out, pairs, tmp_path):
        index = {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "text_encoder": [None, None],
            "safety_checker": [None, None],
        }
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
        with Refused(ValueError, "The pipeline has no `text_encoder`, and", out):
            make(str(tmp_path / "model"), out, pairs)

    def test_processor_that_needs_torchvision_is_refused_before_anything_is_loaded(
        self, out, pairs, tmp_path, monkeypatch
    ):
        index = {
            "_class_name": "Flux2Pipeline",
            "tokenizer": ["transformers", "PixtralProcessor"],
            "is_distilled": True,
        }
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
        monkeypatch.setattr("trl_focus.trainer.pipeline.is_torchvision_available", lambda: False)
        with Refused(ImportError, "`tokenizer` is a PixtralProcessor.*`pip install torchvision`", out):
            make(str(tmp_path / "model"), out, pairs)

    @pytest.mark.parametrize(
        "named", [[None, None], ["transformers", "AutoProcessor"], ["transformers", "Qwen3VLProcessor"]]
    )
    def test_processor_that_a_modular_index_need_not_name(self, out, pairs, tmp_path, monkeypatch, named):
        index = {"_class_name": "Flux3ModularPipeline", "tokenizer": [*named, {"subfolder": "tokenizer"}]}
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "modular_model_index.json").write_text(json.dumps(index))
        monkeypatch.setattr("trl_focus.trainer.pipeline.is_torchvision_available", lambda: False)
        with Refused(ImportError, "`tokenizer` is a Qwen3VLProcessor.*`pip install torchvision`", out):
            make(str(tmp_path / "model"), out, pairs)

    def test_modular_pipeline_that_was_not_given_its_components(self, out):
        pipeline = Flux3ModularPipeline()
        message = "The pipeline has no `text_encoder`, `tokenizer`, `vae`, `transformer`, and training needs it"
        with Refused(ValueError, message, out):
            make_trainer(output_dir=out, family="flux3", pipeline=pipeline)

    def test_offloaded(self, pipeline, out, pairs):
        add_hook_to_module(pipeline.text_encoder, ModelHook())  # as the pipeline's own offload does
        message = r"is offloaded.*Call `pipeline.remove_all_hooks\(\)`, or give"
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs)

    @pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
    def test_offloaded_by_groups(self, pipeline, out, pairs, offload_type):
        """The backward pass would read weights that are away."""
        device = torch.device("cpu")
        pipeline.unet.enable_group_offload(device, device, offload_type, num_blocks_per_group=1)
        with Refused(ValueError, "is offloaded.*backward pass would read .* set `offload_blocks`", out, pipeline):
            make(pipeline, out, pairs)

    def test_arguments_that_its_encoding_does_not_take(self, pipeline, out, pairs):
        message = "`encode_prompt_kwargs` holds 'max_len'; what StableDiffusionPipeline can be given is .*clip_skip"
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs, config={"encode_prompt_kwargs": {"max_len": 64}})

    @pytest.mark.parametrize(
        "quantization",
        [
            BitsAndBytesConfig(load_in_4bit=True),
            PipelineQuantizationConfig(quant_mapping={"unet": BitsAndBytesConfig(load_in_4bit=True)}),
        ],
        ids=type,
    )
    def test_quantization_of_a_loaded_pipeline(self, pipeline, out, pairs, quantization):
        message = "`quantization_config` is for a model given as a string.*Quantize it when you load it"
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs, quantization_config=quantization)


class TestPrompts:
    @pytest.mark.parametrize(
        "name,limit",
        [
            ("sd15", 75),
            ("sdxl", 75),
            ("flux2_klein", 62),
            ("flux2", 61),
            ("flux3", 141),
            ("z_image", 77),
            ("z_image_omni", 77),
        ],
    )
    def test_that_are_cut(self, name, limit, out, caplog):
        """The limit is measured: prompts that differ behind it, and only those, are encoded alike."""
        data = make_pairs(3, n_references=2 if "flux2" in name else 0)
        prompts = ["a" * limit, "a" * limit + "bc", "short"]
        rows = [{**row, "prompt": prompt} for row, prompt in zip(data, prompts, strict=True)]
        with caplog.at_level("WARNING"):
            trainer = make_trainer(DiffusionDPOTrainer, out, name, train_dataset=dataset_of(*rows))
        warnings = [record.message for record in caplog.records if "prompts are longer" in record.message]
        assert len(warnings) == 1
        expected = f"1 of 3 prompts are longer than the {limit} tokens .* Row 1 has {limit + 2}.* cut off: 'bc'"
        assert re.match(expected, warnings[0])

        def embeds(prompt):
            value = trainer.family.encode_prompt([prompt])["prompt_embeds"]
            while isinstance(value, list):
                (value,) = value
            return value.reshape(1, -1, value.shape[-1])

        with torch.no_grad():
            whole, cut, other = (embeds(prompt) for prompt in (prompts[0], prompts[0] + "bcd", prompts[0][:-1] + "b"))
        own = slice(1, limit)  # what closes the prompt may be cut off with it
        assert torch.allclose(whole[:, own], cut[:, own], atol=1e-6)
        assert not torch.allclose(whole, other, atol=1e-3)


class TestArguments:
    @pytest.mark.parametrize(
        "family,resolution,message",
        [
            ("sd15", 60, "`resolution` is 60, .* are multiples of 8 pixels: set it to 64 or 56"),
            ("z_image", 100, "`resolution` is 100, .* are multiples of 16 pixels: set it to 112 or 96"),
            ("qwen_image_21", 16, "`resolution` is 16, .*are multiples of .* pixels: set it to 32"),
            ("flux3", 8, r"`resolution` is 8, .* are multiples of 16 pixels: set it to 16\."),
        ],
    )
    def test_resolution_that_the_model_cannot_make(self, out, family, resolution, message):
        pipeline = PIPELINES[family]()
        with Refused(ValueError, message, out, pipeline):
            make_trainer(output_dir=out, family=family, pipeline=pipeline, resolution=resolution)

    @pytest.mark.parametrize("config_class", [DiffusionDPOConfig, TrainingArguments])
    def test_config_of_another_class(self, pipeline, out, pairs, config_class):
        args = config_class(output_dir=str(out), use_cpu=True, report_to="none")
        with Refused(TypeError, f"`args` must be a `FocusDPOConfig`, got {config_class.__name__}", out, pipeline):
            make(pipeline, out, pairs, FocusDPOTrainer, args=args)

    def test_config_of_another_class_for_diffusion_dpo(self, pipeline, out, pairs):
        args = TrainingArguments(output_dir=str(out), use_cpu=True, report_to="none")
        with Refused(TypeError, "`args` must be a `DiffusionDPOConfig`, got TrainingArguments", out, pipeline):
            make(pipeline, out, pairs, args=args)

    def test_folder_that_cannot_be_written(self, pipeline, tmp_path, pairs):
        (tmp_path / "file").touch()
        before = files(tmp_path)
        state = state_of(pipeline)
        with pytest.raises(OSError, match=r"`output_dir` \(.*file/out\) can't be written: .* Choose another folder"):
            make(pipeline, tmp_path / "file" / "out", pairs)
        assert files(tmp_path) == before
        assert_same(state_of(pipeline), state)

    def test_folder_that_is_a_file(self, pipeline, tmp_path, pairs):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OSError, match="can't be written"):
            make(pipeline, tmp_path / "file", pairs)
        assert (tmp_path / "file").read_text() == "mine"

    def test_files_in_the_folder_stay(self, pipeline, out, pairs):
        out.mkdir()
        (out / "mine").write_text("mine")
        make(pipeline, out, pairs)
        assert files(out) == [out / "mine"]

    def test_several_gpus_in_one_process(self, pipeline, out, pairs):
        args = make_args(DiffusionDPOConfig, out, "sd15")
        args._n_gpu = 2
        with Refused(
            ValueError, "`nn.DataParallel`.*Launch one process per GPU with `accelerate launch`", out, pipeline
        ):
            make(pipeline, out, pairs, args=args)

    @pytest.mark.parametrize("focus_map", ["mask", 1.0])
    def test_map_that_is_not_callable(self, pipeline, out, pairs, focus_map):
        message = r"`focus_map` must be callable, got .*Name a map with `FocusDPOConfig\(focus_map=...\)`"
        with Refused(TypeError, message, out, pipeline):
            make(pipeline, out, pairs, FocusDPOTrainer, focus_map=focus_map)

    def test_evaluation_without_data(self, pipeline, out, pairs):
        message = "`eval_strategy` is 'steps' and there is no `eval_dataset`: give one, or set `eval_strategy='no'`"
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs, config={"eval_strategy": "steps"})

    def test_optimizer_made_before_the_lora(self, pipeline, out, pairs):
        optimizer = torch.optim.SGD(pipeline.unet.parameters())
        message = "`optimizers` can't hold the LoRA's weights.*Choose one with `optim`.*or set `trainer.optimizer`"
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs, optimizers=(optimizer, None))

    def test_optimizer_by_the_way_that_is_named(self, pipeline, out, pairs):
        trainer = make(pipeline, out, pairs)
        trainer.optimizer = torch.optim.SGD([p for p in trainer.model.parameters() if p.requires_grad], lr=0.1)
        before = lora_of(trainer)
        trainer.train()
        assert all(not torch.equal(value, before[name]) for name, value in lora_of(trainer).items())
        assert isinstance(getattr(trainer.optimizer, "optimizer", trainer.optimizer), torch.optim.SGD)


class TestLora:
    @pytest.mark.parametrize("config", [IA3Config(), {"r": 4}], ids=["IA3", "dict"])
    def test_other_methods(self, pipeline, out, pairs, config):
        message = f"`peft_config` must be a `peft.LoraConfig`, got {type(config).__name__}. Full fine-tuning"
        with Refused(TypeError, message, out, pipeline):
            make(pipeline, out, pairs, peft_config=config)

    @pytest.mark.parametrize(
        "field, value, allowed",
        [
            ("bias", "all", "Use 'none'"),
            ("bias", "lora_only", "Use 'none'"),
            ("init_lora_weights", "pissa", "Use True or False or 'gaussian' or 'orthogonal'"),
            ("init_lora_weights", "olora", "Use True or False or 'gaussian' or 'orthogonal'"),
            ("modules_to_save", ["conv_in"], r"Use None or \[\]"),
            ("layer_replication", [(0, 1)], "Use None"),
            ("trainable_token_indices", [0], "Use None"),
        ],
    )
    def test_settings_that_change_the_base_model(self, pipeline, out, pairs, field, value, allowed):
        config = LoraConfig(target_modules=TARGETS, **{field: value})
        with Refused(ValueError, rf"`peft_config.{field}=.*{allowed}\.", out, pipeline):
            make(pipeline, out, pairs, peft_config=config)

    def test_settings_of_a_loaded_lora(self, out, pairs):
        pipeline = with_lora(bias="all")
        with Refused(ValueError, "`peft_config.bias='all'` changes more than the LoRA weights", out, pipeline):
            make(pipeline, out, pairs)

    def test_modules_that_do_not_exist(self, pipeline, out, pairs):
        before = state_of(pipeline)
        with pytest.raises(ValueError, match="q_proj.*not found"):  # PEFT's own, which comes last of all
            make(pipeline, out, pairs, peft_config=LoraConfig(target_modules=["q_proj"]))
        assert_same(state_of(pipeline), before)
        assert files(out) == []

    def test_given_config_is_left_as_it_was(self, pipeline, out, pairs):
        config = LoraConfig(r=2)
        before = config.to_dict()
        make(pipeline, out, pairs, peft_config=config)
        assert config.to_dict() == before

    def test_both_a_loaded_one_and_a_config(self, out, pairs):
        pipeline = with_lora()
        message = "`peft_config` asks for a new one. Leave `peft_config` out .*unload_lora_weights"
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs, peft_config=LoraConfig(r=2))

    def test_two_loaded_ones(self, out, pairs):
        pipeline = with_lora()
        pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=TARGETS), "second")
        message = (
            r"more LoRAs than can be continued \(unet: \['second', 'style'\]\).*Load one .* or `pipeline.unload_lora"
        )
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs)

    def test_one_on_the_text_encoder(self, pipeline, out, pairs):
        pipeline.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), "style")
        with Refused(ValueError, r"more LoRAs than can be continued \(text_encoder: \['style'\]\)", out, pipeline):
            make(pipeline, out, pairs)

    def test_one_that_is_scaled(self, out, pairs):
        pipeline = with_lora()
        pipeline.set_adapters("style", 0.5)
        message = r"LoRA 'style' is fused or scaled. Call .*`pipeline.set_adapters\('style', 1.0\)` first"
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs)

    def test_one_that_is_fused(self, out, pairs):
        pipeline = with_lora()
        pipeline.fuse_lora()
        with Refused(ValueError, r"LoRA 'style' is fused or scaled. Call `pipeline.unfuse_lora\(\)`", out, pipeline):
            make(pipeline, out, pairs)


class TestReference:
    def test_model_without_one(self, pipeline, out, pairs):
        message = "`reference` is 'model' and `ref_model` is not given; `reference='model'` goes with a `ref_model`"
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs, config={"reference": "model"})

    @pytest.mark.parametrize("reference", ["adapter_off", "initial_adapter"])
    def test_one_that_would_not_be_used(self, pipeline, out, pairs, reference):
        other = PIPELINES["sd15"](seed=1)
        with Refused(ValueError, f"`reference` is '{reference}' and `ref_model` is given", out, pipeline, other):
            make(pipeline, out, pairs, ref_model=other, config={"reference": reference})

    @pytest.mark.parametrize("part", [lambda pipe: pipe, lambda pipe: pipe.transformer], ids=["pipeline", "denoiser"])
    def test_another_class(self, pipeline, out, pairs, part):
        other = PIPELINES["flux2_klein"]()
        shown = type(part(other)).__name__
        message = f"`ref_model` is a {shown}; it must be a UNet2DConditionModel, as the policy"
        with Refused(ValueError, message, out, pipeline, other):
            make(pipeline, out, pairs, ref_model=part(other))

    @pytest.mark.parametrize("part", [lambda pipe: pipe, lambda pipe: pipe.unet], ids=["pipeline", "denoiser"])
    def test_other_dimensions(self, pipeline, out, pairs, part):
        other = PIPELINES["sd15"](seed=1)
        other.unet.register_to_config(cross_attention_dim=1024)
        message = "`ref_model` has cross_attention_dim=1024, and `model` cross_attention_dim=32. Give a reference that"
        with Refused(ValueError, message, out, pipeline, other):
            make(pipeline, out, pairs, ref_model=part(other))

    @pytest.mark.parametrize("from_folder", [False, True])
    def test_another_family_with_the_same_denoiser(self, out, tmp_path, from_folder):
        pipeline, other = PIPELINES["qwen_image"](), PIPELINES["qwen_image_edit_plus"]()
        reference = other
        if from_folder:
            index = {"_class_name": "QwenImageEditPlusPipeline", "_diffusers_version": "0.40.0"}
            (tmp_path / "other").mkdir()
            (tmp_path / "other" / "model_index.json").write_text(json.dumps(index))
            other.transformer.save_config(tmp_path / "other" / "transformer")  # no weights: none are read
            reference = str(tmp_path / "other")
        message = "`ref_model` is of the family QwenImageEditPlus, and `model` of QwenImage: .*of the same family"
        with Refused(ValueError, message, out, pipeline, other):
            make_trainer(output_dir=out, family="qwen_image", pipeline=pipeline, ref_model=reference)

    def test_another_class_in_a_folder(self, pipeline, out, pairs, tmp_path):
        config = {"_class_name": "UNet2DModel", "_diffusers_version": "0.40.0"}
        (tmp_path / "other" / "unet").mkdir(parents=True)
        (tmp_path / "other" / "unet" / "config.json").write_text(json.dumps(config))
        message = "`ref_model` is a UNet2DModel; it must be a UNet2DConditionModel, as the policy"
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs, ref_model=str(tmp_path / "other"))

    def test_the_model_itself(self, pipeline, out, pairs):
        with Refused(ValueError, "`ref_model` is `model` itself. Leave it out", out, pipeline):
            make(pipeline, out, pairs, ref_model=pipeline)

    def test_the_models_denoiser(self, pipeline, out, pairs):
        with Refused(ValueError, "`ref_model` is the policy's own denoiser. Leave it out", out, pipeline):
            make(pipeline, out, pairs, ref_model=pipeline.unet)

    def test_another_pipeline_with_the_models_denoiser(self, pipeline, out, pairs):
        other = PIPELINES["sd15"]()
        other.unet = pipeline.unet
        with Refused(ValueError, "`ref_model` is the policy's own denoiser", out, pipeline):
            make(pipeline, out, pairs, ref_model=other)

    def test_initial_adapter_without_one(self, pipeline, out, pairs):
        message = (
            "`reference='initial_adapter'`.*came with none. Load one with `pipeline.load_lora_weights`, or use 'ad"
        )
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs, config={"reference": "initial_adapter"})


def bad_row(**changes):
    """Three pairs, of which the second is bad."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt": "a cat",
            "chosen": random_image(rng),
            "rejected": random_image(rng),
            "chosen_masks": [random_mask(rng)],
            "rejected_masks": [random_mask(rng)],
        }
        for _ in range(3)
    ]
    rows[1].update(changes)
    return dataset_of(*rows)


GREY = PIL.Image.new("RGB", (64, 64), "grey")
BAD_ROWS = {
    "tie": ({"chosen": GREY, "rejected": GREY}, "`chosen` and `rejected` are the same picture.*ties='drop'"),
    "mask size": (
        {"chosen_masks": [PIL.Image.new("L", (32, 64))]},
        r"`chosen_masks`\[0\] can't be used: .*32x64.*64x64",
    ),
    "empty prompt": ({"prompt": " "}, "`prompt` is empty: give the caption"),
    "no image": ({"rejected": None}, r"`rejected` is missing \(None\)"),
    "aspect ratios": (
        {"rejected": GREY.resize((128, 64)), "rejected_masks": [PIL.Image.new("L", (128, 64))]},
        "`rejected` is 128x64 pixels and `chosen` 64x64: .* or set `crop` to 'center' or 'random'",
    ),
    "no masks": (
        {"chosen_masks": None},
        "has no `chosen_masks` and `rejected_masks`.*`focus_prior` to 'similarity'.*or `focus_map` to 'uniform'",
    ),
    "references": (
        {"references": [GREY], "subjects": ["cat"]},
        r"`references` is not empty, and this model takes no reference images.*remove_columns\(\['references'\]\)",
    ),
}


class TestData:
    def test_none(self, pipeline, out):
        with Refused(ValueError, "`train_dataset` is required: give a `datasets.Dataset`", out, pipeline):
            make(pipeline, out, None)

    def test_list(self, pipeline, out, pairs):
        message = "`train_dataset`: expected a `datasets.Dataset` or .*, got list: see `datasets.Dataset.from_list`"
        with Refused(TypeError, message, out, pipeline):
            make(pipeline, out, [*pairs])

    def test_all_splits(self, pipeline, out, pairs):
        message = r"`train_dataset`: this holds several splits: pass one of them, e.g. dataset\['train'\]"
        with Refused(TypeError, message, out, pipeline):
            make(pipeline, out, DatasetDict(train=pairs))

    def test_missing_column(self, pipeline, out, pairs):
        message = "`train_dataset`: the dataset lacks the columns 'rejected'; .*rename_column"
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, pairs.rename_column("rejected", "lose"))

    def test_what_needs_no_model_is_refused_before_one_is_loaded(self, out, pairs):
        with Refused(ValueError, "`train_dataset`: the dataset lacks the columns 'prompt'", out):
            make("there/is-no-such-model", out, pairs.remove_columns("prompt"))

    def test_empty(self, pipeline, out, pairs):
        with Refused(ValueError, "`train_dataset`: the dataset has no rows", out, pipeline):
            make(pipeline, out, pairs.select([]))

    def test_stream_without_a_number_of_steps(self, pipeline, out, pairs):
        with Refused(ValueError, "`train_dataset` is a stream, .* set `max_steps`", out, pipeline):
            make(pipeline, out, pairs.to_iterable_dataset(), config={"max_steps": -1})

    @pytest.mark.parametrize("case", BAD_ROWS)
    def test_bad_row(self, pipeline, out, case):
        changes, message = BAD_ROWS[case]
        with Refused(ValueError, rf"(?s)`train_dataset`: .*row 1: .*{message}", out, pipeline) as refused:
            make(pipeline, out, bad_row(**changes), FocusDPOTrainer)
        assert "row 0" not in str(refused.value) and "row 2" not in str(refused.value)

    @pytest.mark.parametrize(
        "family,count,message",
        [
            ("qwen_image_edit", 0, "row 0: `references` holds no images, and this model takes exactly 1"),
            ("qwen_image_edit", 2, "row 0: `references` holds 2 images, and this model takes exactly 1"),
            ("qwen_image_edit_plus", 0, "row 0: `references` holds no images, and this model takes at least 1"),
            ("z_image", 1, "row 0: `references` is not empty, and this model takes no reference images"),
        ],
    )
    def test_reference_count(self, out, family, count, message):
        pipeline = PIPELINES[family]()
        with Refused(ValueError, f"(?s)`train_dataset`: .*{message}", out, pipeline):
            make_trainer(
                output_dir=out, family=family, pipeline=pipeline, train_dataset=make_pairs(2, n_references=count)
            )

    def test_references_on_sdxl(self, out):
        pipeline = PIPELINES["sdxl"]()
        message = "(?s)`train_dataset`: .*row 0: `references` is not empty, and this model takes no reference images"
        with Refused(ValueError, message, out, pipeline):
            make(pipeline, out, make_pairs(2, n_references=1))

    def test_masks_are_not_needed_where_the_map_needs_none(self, pipeline, out):
        data = bad_row(chosen_masks=None)
        make(pipeline, out, data)
        make(PIPELINES["sd15"](), out, data, FocusDPOTrainer, config={"focus_map": "uniform"})
        make(PIPELINES["sd15"](), out, data, FocusDPOTrainer, focus_map=lambda context: None)

    def test_evaluation_set_by_name(self, pipeline, out, pairs):
        message = r"(?s)`eval_dataset\['hard'\]`: .*row 1: .*same picture"
        with Refused(ValueError, message, out, pipeline):
            bad = bad_row(chosen=GREY, rejected=GREY)
            make(pipeline, out, pairs, eval_dataset={"easy": pairs, "hard": bad})

    def test_evaluation_set_of_another_type(self, pipeline, out, pairs):
        with Refused(TypeError, "`eval_dataset`: expected a `datasets.Dataset`.*got list", out, pipeline):
            make(pipeline, out, pairs, eval_dataset=[*pairs])

    def test_no_full_batch_to_train_on(self, out):
        data = make_pairs(4, size=[(64, 64), (128, 64), (64, 128), (96, 64)])
        trainer = make(PIPELINES["sd15"](), out, data, config={"dataloader_drop_last": True})
        message = "`train_dataset` has no full batch of 2 pairs of one layout.*Lower `per_device_train_batch_size`, or"
        with pytest.raises(ValueError, match=message):
            trainer.train()
        assert files(out) == []
        make(PIPELINES["sd15"](), out, data.select([0, 0]), config={"dataloader_drop_last": True}).train()

    def test_row_of_a_stream(self, pipeline, out):
        data = bad_row(chosen=GREY, rejected=GREY).to_iterable_dataset()
        trainer = make(pipeline, out, data)
        with pytest.raises(ValueError, match="row 1: `chosen` and `rejected` are the same picture.*`ties='drop'`"):
            trainer.train()
        assert files(out) == []


class TestEvaluate:
    def test_nothing_to_evaluate_on(self, pipeline, out, pairs):
        trainer = make(pipeline, out, pairs)
        with pytest.raises(
            ValueError, match="Evaluation needs an `eval_dataset`: give one to the trainer, or to `eval"
        ):
            trainer.evaluate()

    def test_unknown_name(self, pipeline, out, pairs):
        trainer = make(pipeline, out, pairs, eval_dataset={"easy": pairs})
        with pytest.raises(ValueError, match=r"`eval_dataset` has no part 'hard'; it has \['easy'\]"):
            trainer.evaluate("hard")

    def test_name_where_there_are_none(self, pipeline, out, pairs):
        trainer = make(pipeline, out, pairs, eval_dataset=pairs)
        with pytest.raises(ValueError, match="`eval_dataset` has no part 'hard'; it has no named parts"):
            trainer.evaluate("hard")

    def test_another_type(self, pipeline, out, pairs):
        trainer = make(pipeline, out, pairs)
        with pytest.raises(TypeError, match="`eval_dataset`: The dataset must be a `datasets.Dataset`.*got list"):
            trainer.evaluate([*pairs])

    def test_bad_row(self, pipeline, out, pairs):
        trainer = make(pipeline, out, pairs)
        with pytest.raises(ValueError, match="(?s)`eval_dataset`: .*row 1: .*same picture"):
            trainer.evaluate(bad_row(chosen=GREY, rejected=GREY))
        assert files(out) == []


def settled(trainer) -> dict[str, torch.Tensor]:
    return {**lora_of(trainer), **{name: value.clone() for name, value in trainer.pipeline.vae.named_parameters()}}


def checkpoint(folder, family="sd15", **kwargs) -> str:
    trainer = make_trainer(
        output_dir=folder, family=family, max_steps=1, save_strategy="steps", save_steps=1, **kwargs
    )
    trainer.train()
    return str(folder / "checkpoint-1")


class TestResume:
    def refused(self, trainer, match, resume):
        before = settled(trainer)
        with pytest.raises(ValueError, match=match):
            trainer.train(resume_from_checkpoint=resume)
        after = settled(trainer)
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        assert files(Path(trainer.args.output_dir)) == []
        assert trainer.state.global_step == 0

    def test_folder_that_is_no_checkpoint(self, pipeline, out, pairs, tmp_path):
        message = (
            "is no checkpoint of this trainer: it has no diffusion_dpo_state.json. Give a folder `checkpoint-<step>`"
        )
        self.refused(make(pipeline, out, pairs), message, str(tmp_path))

    def test_folder_that_does_not_exist(self, pipeline, out, pairs, tmp_path):
        message = "checkpoint-9 is no checkpoint of this trainer"
        self.refused(make(pipeline, out, pairs), message, str(tmp_path / "checkpoint-9"))

    def test_saved_model(self, out, pairs, tmp_path):
        make(PIPELINES["sd15"](), tmp_path / "saved", pairs).save_model()
        message = "it has no trainer_state.json. .* A saved LoRA is continued by loading it into the pipeline"
        self.refused(make(PIPELINES["sd15"](), out, pairs), message, str(tmp_path / "saved"))

    def test_last_one_of_an_empty_folder(self, pipeline, out, pairs):
        message = (
            r"There is no checkpoint in `output_dir` \(.*out\) to resume from. Leave `resume_from_checkpoint` out"
        )
        self.refused(make(pipeline, out, pairs), message, True)

    def test_last_one_of_a_folder_that_is_gone(self, pipeline, out, pairs):
        trainer = make(pipeline, out, pairs)
        out.rmdir()
        self.refused(trainer, "There is no checkpoint in `output_dir`", True)

    def test_another_family_with_the_same_denoiser(self, out, tmp_path):
        resume = checkpoint(tmp_path / "qwen", "qwen_image")
        message = (
            "checkpoint-1 is of the family QwenImage .*and this model of QwenImageEdit .*Resume with the model that"
        )
        self.refused(make_trainer(output_dir=out, family="qwen_image_edit"), message, resume)

    def test_another_family(self, out, tmp_path):
        resume = checkpoint(tmp_path / "sd")
        message = (
            r"checkpoint-1 is of the family StableDiffusion \(UNet2DConditionModel\), and this model of Flux2 "
            r"\(Flux2Transformer2DModel\). Resume with the model that it was trained on"
        )
        self.refused(make_trainer(output_dir=out), message, resume)

    @pytest.mark.parametrize(
        "config, theirs, ours",
        [
            (LoraConfig(r=4, lora_alpha=16), "r=16", "r=4"),
            (LoraConfig(r=16, lora_alpha=8), "lora_alpha=16", "lora_alpha=8"),  # would load, at another strength
            (LoraConfig(r=16, lora_alpha=16, use_rslora=True), "use_rslora=None", "use_rslora=True"),
            (
                LoraConfig(r=16, lora_alpha=16, target_modules=["to_q"]),
                r"target_modules=\['to_k', 'to_out.0', 'to_q', 'to_v'\]",
                r"target_modules=\['to_q'\]",
            ),
        ],
        ids=["rank", "alpha", "scaling", "modules"],
    )
    def test_another_lora(self, pipeline, out, pairs, tmp_path, config, theirs, ours):
        resume = checkpoint(tmp_path / "first")
        message = (
            f"holds a LoRA with {theirs}, and this trainer has {ours}. Give the `peft_config` it was trained with"
        )
        self.refused(make(pipeline, out, pairs, peft_config=config), message, resume)

    def test_another_start_and_dropout_of_a_lora_are_no_other_lora(self, pipeline, out, pairs, tmp_path):
        resume = checkpoint(tmp_path / "first")
        config = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.1, init_lora_weights=True)
        make(pipeline, out, pairs, peft_config=config).train(resume_from_checkpoint=resume)

    def test_reference_of_the_checkpoint_replaces_the_trainers(self, out, pairs, tmp_path):
        resume = checkpoint(tmp_path / "first")
        pipeline = with_lora(r=16, lora_alpha=16)
        trainer = make(pipeline, out, pairs, config={"reference": "initial_adapter"})
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.reference == "adapter_off"
        assert [*trainer.model.peft_config] == ["default"]  # or checkpoints to come would hold another one

    def test_reference_model_that_is_missing(self, pipeline, out, pairs, tmp_path):
        resume = checkpoint(tmp_path / "first", ref_model=PIPELINES["sd15"](seed=1))
        message = "was trained with `reference='model'`, and this trainer has 'adapter_off'. Give the `ref_model`"
        self.refused(make(pipeline, out, pairs), message, resume)

    def test_reference_model_that_was_not_there(self, pipeline, out, pairs, tmp_path):
        resume = checkpoint(tmp_path / "first")
        message = "was trained with `reference='adapter_off'`, and this trainer has 'model'. Leave out the `ref_model`"
        self.refused(make(pipeline, out, pairs, ref_model=PIPELINES["sd15"](seed=1)), message, resume)


class Tamper(FocusMapCallback):
    """Puts a value into the weights, or something else in their place."""

    def __init__(self, change, step=0):
        self.change, self.step = change, step

    def on_focus_maps(self, args, state, control, focus_maps, batch, **kwargs):
        if state.global_step >= self.step:
            return {"weights": self.change(focus_maps["weights"])}


def spoilt(value):
    def change(weights):
        weights = weights.clone()
        weights[0, 0, 0] = value
        return weights

    return change


class TestFocusMap:
    @pytest.mark.parametrize(
        "focus_map, got",
        [
            (lambda context: None, "NoneType"),
            (lambda context: 1.0, "float"),
            (lambda context: torch.ones(context.grid), r"\(8, 8\)"),
            (lambda context: torch.ones(1, *context.grid), r"\(1, 8, 8\)"),  # would broadcast
            (lambda context: torch.ones(len(context.level_B), 1, *context.grid), r"\(4, 1, 8, 8\)"),
        ],
        ids=["None", "number", "one map", "one map in a batch", "channel"],
    )
    def test_map_of_a_wrong_shape(self, pipeline, out, pairs, focus_map, got):
        trainer = make(pipeline, out, pairs, FocusDPOTrainer, focus_map=focus_map)
        before = lora_of(trainer)
        message = rf"`focus_map` returned {got} instead of a tensor of shape \(4, 8, 8\): .*the chosen ones first"
        with pytest.raises(ValueError, match=message):
            trainer.train()
        assert all(torch.equal(value, before[name]) for name, value in lora_of(trainer).items())
        assert files(out) == []

    def test_callback_of_a_wrong_shape(self, pipeline, out, pairs):
        callback = Tamper(lambda weights: weights[:1])
        trainer = make(pipeline, out, pairs, FocusDPOTrainer, callbacks=[callback])
        message = (
            r"`Tamper.on_focus_maps` \(map 'weights'\) returned \(1, 8, 8\) instead of a tensor of shape \(4, 8, 8"
        )
        with pytest.raises(ValueError, match=message):
            trainer.train()

    @pytest.mark.parametrize("value", [-0.01, float("nan"), float("inf")])
    @pytest.mark.parametrize("source", ["map", "callback"])
    def test_weights_that_are_unfit_stop_at_the_next_log(self, pipeline, out, pairs, value, source):
        change = spoilt(value)
        kwargs = {"callbacks": [Tamper(change, step=2)]}
        if source == "map":

            def focus_map(context):
                weights = torch.ones(len(context.level_B), *context.grid)
                return change(weights) if trainer.state.global_step >= 2 else weights

            kwargs = {"focus_map": focus_map}
        config = {"max_steps": 9, "logging_steps": 2, "save_strategy": "steps", "save_steps": 4}
        trainer = make(pipeline, out, pairs, FocusDPOTrainer, config=config, **kwargs)
        message = "The focus map, or a callback .*negative or not finite.*look at `focus_map` and at `on_focus_maps`"
        with pytest.raises(FloatingPointError, match=message):
            trainer.train()
        assert trainer.state.global_step == 4  # spoilt in the third step
        assert [log["step"] for log in trainer.state.log_history] == [2]
        assert files(out) == []  # in particular no checkpoint

    def test_unfit_weights_in_evaluation(self, pipeline, out, pairs):
        def focus_map(context):
            weights = torch.ones(len(context.level_B), *context.grid)
            return weights if trainer.model.training else -weights

        trainer = make(pipeline, out, pairs, FocusDPOTrainer, focus_map=focus_map, eval_dataset=pairs)
        with pytest.raises(FloatingPointError, match="The focus map"):
            trainer.evaluate()
