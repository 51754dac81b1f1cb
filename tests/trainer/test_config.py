# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import ast
import dataclasses
import inspect
import re
from dataclasses import astuple

import pytest
import yaml
from transformers import HfArgumentParser, TrainingArguments
from trl import TrlParser

from trl_focus import DiffusionDPOConfig, FocusDPOConfig
from trl_focus._compat import _BaseConfig
from trl_focus.focus.allocation import FocusWeights
from trl_focus.trainer import diffusion_dpo_config


CONFIGS = [DiffusionDPOConfig, FocusDPOConfig]
NAN = float("nan")


def config(cls=DiffusionDPOConfig, **kwargs):
    return cls(**{"output_dir": "unused", "use_cpu": True, **kwargs})


def declared(cls) -> dict[str, dataclasses.Field]:
    """The fields that stand in the class itself."""
    return {name: cls.__dataclass_fields__[name] for name in inspect.get_annotations(cls)}


def default_of(field: dataclasses.Field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


REFUSALS = {
    "beta zero": ({"beta": 0.0}, r"`beta` is 0.0; it must be finite and above 0 \(2000"),
    "beta negative": ({"beta": -1.0}, "`beta` is -1.0; it must be finite and above 0"),
    "beta nan": ({"beta": NAN}, "`beta` is nan; it must be finite and above 0"),
    "beta infinite": ({"beta": float("inf")}, "`beta` is inf; it must be finite and above 0"),
    "weight nan": ({"loss_weights": [NAN]}, r"`loss_weights` is \[nan\]; every weight must be finite"),
    "weight infinite": ({"loss_weights": float("inf")}, r"`loss_weights` is \[inf\]; every weight must be finite"),
    "lower bound of a fixed beta": (
        {"beta_min": 1.0},
        "`beta_min` and `beta_max` bound a moving beta; set `target_gradient_factor`, or leave them out",
    ),
    "upper bound of a fixed beta": ({"beta_max": 1e4}, "`beta_min` and `beta_max` bound a moving beta"),
    "no loss": ({"loss_type": []}, "`loss_type` is empty; name at least one of sigmoid, robust, hinge, ipo, sft"),
    "unknown loss": ({"loss_type": ["dpo"]}, "`loss_type` is 'dpo'; it must be one of 'sigmoid', 'robust'"),
    "second loss unknown": ({"loss_type": ["sigmoid", "kto"]}, "`loss_type` is 'kto'"),
    "unknown loss as a string": ({"loss_type": "dpo"}, "`loss_type` is 'dpo'"),
    "weight negative": (
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, -0.1]},
        r"`loss_weights` is \[1.0, -0.1\]; every weight must be finite and at least 0",
    ),
    "anchor alone": ({"loss_type": "anchor"}, "`loss_type` is 'anchor' alone, which asks for no change"),
    "too many weights": ({"loss_weights": [1.0, 2.0]}, "`loss_weights` has 2 entries and `loss_type` 1; give one"),
    "too few weights": ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "`loss_weights` has 1 entries"),
    "one weight for two": ({"loss_type": ["sigmoid", "sft"], "loss_weights": 1.0}, "`loss_weights` has 1 entries"),
    "no weights": ({"loss_weights": []}, "`loss_weights` has 0 entries"),
    "smoothing negative": (
        {"loss_type": "robust", "label_smoothing": -0.1},
        "`label_smoothing` is -0.1; it must be at least 0 and below 0.5",
    ),
    "smoothing a half": ({"loss_type": "robust", "label_smoothing": 0.5}, "`label_smoothing` is 0.5"),
    "smoothing nan": ({"loss_type": "robust", "label_smoothing": NAN}, "`label_smoothing` is nan"),
    "smoothing without robust": (
        {"label_smoothing": 0.1},
        "`label_smoothing` is read by the 'robust' loss alone; add it to `loss_type`, or leave it 0",
    ),
    "transformers' smoothing": ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor`.*Use `label_smoothing`"),
    "bound negative": ({"rejected_error_bound": -0.01}, "`rejected_error_bound` is -0.01; it must be at least 0"),
    "bound nan": ({"rejected_error_bound": NAN}, "`rejected_error_bound` is nan"),
    "factor zero": ({"target_gradient_factor": 0.0}, "`target_gradient_factor` is 0.0; it must lie between 0 and 0.5"),
    "factor a half": ({"target_gradient_factor": 0.5}, "`target_gradient_factor` is 0.5"),
    "factor with hinge": (
        {"target_gradient_factor": 0.4, "loss_type": ["sigmoid", "hinge"]},
        "`target_gradient_factor` has no meaning for `loss_type=.*Use one of these, or leave it out",
    ),
    "factor with ipo": (
        {"target_gradient_factor": 0.4, "loss_type": "ipo"},
        "`target_gradient_factor` has no meaning",
    ),
    "factor with sft alone": (
        {"target_gradient_factor": 0.4, "loss_type": "sft"},
        "`target_gradient_factor` has no meaning",
    ),
    "beta below its bounds": (
        {"target_gradient_factor": 0.4, "beta_min": 3000.0},
        r"`beta` \(2000.0\) must lie between `beta_min` \(3000.0\) and `beta_max` \(20000.0\)",
    ),
    "beta above its bounds": ({"target_gradient_factor": 0.4, "beta_max": 100.0}, r"`beta_max` \(100.0\)"),
    "lower bound zero": ({"target_gradient_factor": 0.4, "beta_min": 0.0}, r"`beta_min` \(0.0\).*all above 0"),
    "warmup negative": (
        {"target_gradient_factor": 0.4, "beta_warmup_steps": -1},
        "`beta_warmup_steps` is -1; it must be at least 0",
    ),
    "reference": (
        {"reference": "ema"},
        "`reference` is 'ema'; it must be one of None, 'adapter_off', 'initial_adapter'",
    ),
    "crop": ({"crop": "centre"}, "`crop` is 'centre'; it must be one of 'none', 'center', 'random'"),
    "attention": (
        {"attention_backend": "flash_attention"},
        "`attention_backend` is 'flash_attention'; it must be one of None, 'flash'",
    ),
    "ties": ({"ties": "keep"}, "`ties` is 'keep'; it must be one of 'error', 'drop'"),
    "scheme": ({"weighting_scheme": "cosmap"}, "`weighting_scheme` is 'cosmap'; it must be one of 'none', 'logit_n"),
    "dropout above 1": ({"caption_dropout": 1.1}, "`caption_dropout` is 1.1; it is a probability, between 0 and 1"),
    "dropout negative": ({"caption_dropout": -0.1}, "`caption_dropout` is -0.1"),
    "dropout nan": ({"caption_dropout": NAN}, "`caption_dropout` is nan"),
    "resolution": ({"resolution": 0}, "`resolution` is 0; it must be above 0"),
    "reference resolution": ({"reference_resolution": -512}, "`reference_resolution` is -512; it must be above 0"),
    "logit std": ({"logit_std": 0.0}, "`logit_std` is 0.0; it must be above 0"),
    "mode scale above": ({"mode_scale": 1.76}, "`mode_scale` is 1.76; it must lie between -1 and 1.75"),
    "mode scale below": ({"mode_scale": -1.01}, "`mode_scale` is -1.01"),
    "eval seed": ({"eval_seed": -1}, "`eval_seed` is -1; it must be at least 0"),
    "neftune": ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` adds noise to token embeddings"),
    "batches by length": (
        {"train_sampling_strategy": "group_by_length"},
        "`train_sampling_strategy` is 'group_by_length'.*Use 'random' or 'sequential'",
    ),
    "init kwargs no JSON": (
        {"model_init_kwargs": "fp16"},
        "`model_init_kwargs` is 'fp16'; give a dictionary, or one as",
    ),
    "encode kwargs no JSON": (
        {"encode_prompt_kwargs": "[1]"},
        r"`encode_prompt_kwargs` is '\[1\]'; give a dictionary",
    ),
}

NO_MATCHING = {"focus_matching": "none"}
FOCUS_REFUSALS = {
    "map": (
        {"focus_map": "attention"},
        "`focus_map` is 'attention'; it must be one of 'uniform', 'mask', 'patch', 'focus'",
    ),
    "prior": (
        {"focus_prior": "boxes"},
        "`focus_prior` is 'boxes'; it must be one of 'masks', 'similarity', 'everywhere'",
    ),
    "matching": (
        {"focus_matching": "argmax"},
        "`focus_matching` is 'argmax'; it must be one of 'graded', 'top_k', 'none'",
    ),
    "normalization": (
        {"focus_normalization": "sum"},
        "`focus_normalization` is 'sum'; it must be one of 'none', 'mean'",
    ),
    "gate": ({"detail_gate": "sigma"}, "`detail_gate` is 'sigma'; it must be one of 'level', 'alignment'"),
    "anchor without predictions": (
        {"loss_type": ["sigmoid", "anchor"], "precompute_ref_errors": 2},
        "`precompute_ref_errors` keeps the reference's errors alone",
    ),
    "no pair in a batch": (
        {"per_device_train_batch_size": 0},
        "`per_device_train_batch_size` is 0; it must be at least 1",
    ),
    "no learning rate": ({"learning_rate": None}, "`learning_rate` is None; leave it out"),
    "subject gate": ({"subject_gate": "best"}, "`subject_gate` is 'best'; it must be one of 'shown', 'none'"),
    "blocks string": ({"focus_blocks": "single_transformer_blocks.4"}, "`focus_blocks` .* must be a list of names"),
    "no blocks": ({"focus_blocks": []}, r"`focus_blocks` is \[\]; it must be a list"),
    "threshold": ({"detail_threshold": 1.5}, "`detail_threshold` is 1.5; it must lie in"),
    "threshold nan": ({"detail_threshold": NAN}, "`detail_threshold` is nan; it must lie in"),
    "background negative": (
        {"background_weight": -0.1},
        "`background_weight` is -0.1; it must be finite and at least 0",
    ),
    "background nan": ({"background_weight": NAN}, "`background_weight` is nan"),
    "prior negative": ({"prior_weight": -1.0}, "`prior_weight` is -1.0; it must be finite and at least 0"),
    "structure infinite": ({"structure_weight": float("inf")}, "`structure_weight` is inf"),
    "leak negative": ({"leak_weight": -1e-9}, "`leak_weight` is -1e-09"),
    "detail negative": ({"detail_weight": -2.0}, "`detail_weight` is -2.0"),
    "nothing left": ({"leak_weight": 0.8}, "parts of 'focus' leave -0.03 to 1 for `prior_weight`: set it yourself"),
    "nothing left in mask": (
        {"focus_map": "mask", "background_weight": 1.5},
        "'mask' leave -0.5 to 1 for `prior_weight`",
    ),
    "all weights zero": (
        {"focus_map": "mask", "background_weight": 0.0, "prior_weight": 0.0},
        "All weights are 0: nothing would be trained",
    ),
    "patch without matching": (
        {"focus_map": "patch", **NO_MATCHING},
        "'patch'` is made of a matching with references",
    ),
    "gate without matching": ({"detail_gate": "alignment", **NO_MATCHING}, "'alignment'` asks .*: choose 'level'"),
    "anchor without an outside": (
        {"loss_type": ["sigmoid", "anchor"], "focus_prior": "everywhere"},
        "with `focus_prior='everywhere'` nothing is",
    ),
    "balance without masks": (
        {"focus_normalization": "subject", "focus_prior": "everywhere"},
        "balances the subjects by their masks, and `focus_prior` is 'everywhere'",
    ),
}


@pytest.mark.parametrize(
    "kwargs,expected",
    [
        ({}, (0.03, 0.47, 0.2, 0.3, 0.2)),
        ({"focus_matching": "none"}, (0.03, 0.77, 0.0, 0.0, 0.2)),
        ({"leak_weight": 0.0}, (0.03, 0.57, 0.2, 0.0, 0.2)),
        ({"prior_weight": 2.0}, (0.03, 2.0, 0.2, 0.3, 0.2)),
        ({"background_weight": 0.5}, (0.5, 0.0, 0.2, 0.3, 0.2)),
        ({"focus_map": "mask"}, (0.03, 0.97, 0.0, 0.0, 0.0)),
        ({"focus_map": "patch", "background_weight": 0.0}, (0.0, 1.0, 0.0, 0.0, 0.0)),
        ({"focus_map": "mask", "prior_weight": 0.3}, (0.03, 0.3, 0.0, 0.0, 0.0)),
    ],
)
def test_focus_weights(kwargs, expected):
    """The largest weight a cell can have is 1 unless the user says otherwise."""
    assert astuple(config(FocusDPOConfig, **kwargs).focus_weights) == pytest.approx(expected)
    assert astuple(FocusWeights()) == pytest.approx(astuple(config(FocusDPOConfig).focus_weights))


@pytest.mark.parametrize("cls", CONFIGS)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals(cls, refusal):
    kwargs, message = REFUSALS[refusal]
    with pytest.raises(ValueError, match=message):
        config(cls, **kwargs)


@pytest.mark.parametrize("refusal", FOCUS_REFUSALS)
def test_refusals_of_focus_maps(refusal):
    kwargs, message = FOCUS_REFUSALS[refusal]
    with pytest.raises(ValueError, match=message):
        config(FocusDPOConfig, **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"loss_type": ["robust"], "label_smoothing": 0.49},
        {"rejected_error_bound": 0.0},
        {"target_gradient_factor": 0.49, "loss_type": ["robust", "sft"], "beta_warmup_steps": 0},
        {"target_gradient_factor": 0.1, "beta_min": 2000.0, "beta_max": 2000.0},
        {"caption_dropout": 1.0, "mode_scale": -1.0, "eval_seed": 0},
        {"mode_scale": 1.75, "train_sampling_strategy": "sequential"},
        {"background_weight": 0.0},
        {"prior_weight": 0.0},
    ],
    ids=str,
)
def test_values_at_the_bounds_are_allowed(kwargs):
    made = config(FocusDPOConfig, **kwargs)
    assert {name: getattr(made, name) for name in kwargs} == kwargs


def test_bounds_of_a_moving_beta_follow_it():
    made = config(target_gradient_factor=0.3, beta=500.0)
    assert (made.beta_min, made.beta_max) == (50.0, 5000.0)
    made = config(beta=500.0)
    assert (made.beta_min, made.beta_max) == (None, None)


def test_one_loss_as_a_string():
    made = config(loss_type="sft", loss_weights=0.5)
    assert (made.loss_type, made.loss_weights) == (["sft"], [0.5])


def test_default_lists_are_not_shared():
    config().loss_type.append("sft")
    assert config().loss_type == ["sigmoid"]


class TestBf16:
    """`bf16` where nothing is said. The accelerator is pretended: what it supports is transformers' matter."""

    @pytest.fixture(autouse=True)
    def accelerator(self, monkeypatch, request):
        supported = request.node.callspec.params.get("supported", True)
        monkeypatch.setattr(diffusion_dpo_config, "is_torch_bf16_gpu_available", lambda: supported)
        monkeypatch.setattr(_BaseConfig, "__post_init__", lambda self: None)  # would look for the device itself

    @pytest.mark.parametrize(
        "supported, kwargs, expected",
        [
            (True, {"use_cpu": False}, True),
            (True, {"use_cpu": True}, False),
            (True, {"use_cpu": False, "fp16": True}, False),
            (False, {"use_cpu": False}, False),
            (False, {"use_cpu": False, "bf16": True}, True),
            (True, {"use_cpu": True, "bf16": True}, True),
            (True, {"use_cpu": False, "bf16": False}, False),
        ],
    )
    def test_default(self, supported, kwargs, expected):
        assert config(**kwargs).bf16 is expected


def test_bf16_is_off_on_the_cpu():
    assert config().bf16 is False


class TestDocumentation:
    @pytest.mark.parametrize("cls", CONFIGS)
    def test_every_field_has_a_help_text(self, cls):
        assert declared(cls)
        for name, field in declared(cls).items():
            assert field.metadata.get("help", "").endswith("."), name

    @pytest.mark.parametrize("cls", CONFIGS)
    def test_docstring_names_every_field_with_its_default(self, cls):
        documented = dict(re.findall(r"^ {8}(\w+) \((.*)\):$", cls.__doc__, flags=re.MULTILINE))
        own = {
            name: field for name, field in declared(cls).items() if name not in TrainingArguments.__dataclass_fields__
        }
        assert list(documented) == list(own)  # in the same order
        for name, field in own.items():
            default = default_of(field)
            shown = re.search(r"\*optional\*(?:, defaults to `(.*)`)?$", documented[name])
            assert shown, name
            if default is None:
                assert shown[1] is None, name
            else:
                assert shown[1].replace('"', "'") == repr(default), name

    def test_docstring_gives_the_type_of_every_field(self):
        documented = dict(re.findall(r"^ {8}(\w+) \((.*)\):$", DiffusionDPOConfig.__doc__, flags=re.MULTILINE))
        kinds = {"bool": "`bool`", "int": "`int`", "float": "`float`", "str": "`str`", "list[str]": "`list[str]`"}
        for name, annotation in inspect.get_annotations(DiffusionDPOConfig, eval_str=False).items():
            kind = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
            if name in documented and kind in kinds:
                assert documented[name].startswith(kinds[kind]), name

    def test_changed_defaults_in_the_note_are_true(self):
        lines = re.findall(r"> - `(\w+)`: Defaults to `(.*?)`(?: instead of `(.*?)`)?", DiffusionDPOConfig.__doc__)
        assert [name for name, _, _ in lines] == [
            "logging_steps",
            "gradient_checkpointing",
            "bf16",
            "learning_rate",
            "logging_nan_inf_filter",
            "ddp_find_unused_parameters",
        ]
        made, plain = config(), TrainingArguments(output_dir="unused", use_cpu=True)
        for name, ours, theirs in lines:
            if name == "bf16":  # depends on the device
                continue
            assert getattr(made, name) == ast.literal_eval(ours), name
            assert getattr(made, name) != getattr(plain, name), name
            if theirs:  # a deprecated switch is `None` for off
                assert (getattr(plain, name) or False) == ast.literal_eval(theirs), name

    def test_note_names_every_changed_default(self):
        changed = {
            name
            for name, field in TrainingArguments.__dataclass_fields__.items()
            if default_of(field) != default_of(DiffusionDPOConfig.__dataclass_fields__[name])
        }
        noted = re.findall(r"> - `(\w+)`", DiffusionDPOConfig.__doc__)
        assert changed <= {*noted}

    @pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
    @pytest.mark.parametrize("cls", CONFIGS)
    def test_help_renders(self, cls, parser):
        text = " ".join(parser((cls,)).format_help().split())
        for name, field in declared(cls).items():
            if name in TrainingArguments.__dataclass_fields__:
                continue
            assert f"--{name}" in text
            # a line may break after a hyphen or inside a word of code
            assert "".join(field.metadata["help"].split()) in "".join(text.split()), name


class TestCommandLine:
    def parse(self, *arguments, cls=FocusDPOConfig):
        (made,) = TrlParser((cls,)).parse_args_and_config(["--output_dir", "unused", "--use_cpu", *arguments])
        return made

    def test_dictionaries_as_json(self):
        made = self.parse(
            "--model_init_kwargs",
            '{"dtype": "bfloat16", "revision": "main"}',
            "--encode_prompt_kwargs",
            '{"max_sequence_length": 64}',
        )
        assert made.model_init_kwargs == {"dtype": "bfloat16", "revision": "main"}
        assert made.encode_prompt_kwargs == {"max_sequence_length": 64}

    def test_lists_and_numbers(self):
        made = self.parse(
            *("--loss_type", "sigmoid", "sft", "--loss_weights", "1", "0.25", "--resolution", "512"),
            *("--target_gradient_factor", "0.3", "--focus_sft", "--reference", "initial_adapter"),
        )
        assert made.loss_type == ["sigmoid", "sft"]
        assert made.loss_weights == [1.0, 0.25]
        assert (made.resolution, made.target_gradient_factor, made.focus_sft) == (512, 0.3, True)
        assert made.reference == "initial_adapter"

    def test_defaults_are_those_of_the_class(self):
        assert self.parse().to_dict() == config(FocusDPOConfig).to_dict()

    def test_a_switch_that_is_on_can_be_turned_off(self):
        assert not self.parse("--no_disable_dropout").disable_dropout

    @pytest.mark.parametrize(
        "name", ["reference", "reference_positions", "crop", "ties", "weighting_scheme", "focus_map"]
    )
    def test_choices_are_those_that_are_accepted(self, name, capsys):
        with pytest.raises(SystemExit):
            self.parse(f"--{name}", "nonsense")
        assert re.search(rf"argument --{name}\b.*: invalid choice: 'nonsense'", capsys.readouterr().err)
        for value in FocusDPOConfig.__dataclass_fields__[name].metadata["choices"]:
            assert getattr(self.parse(f"--{name}", value), name) == value

    def test_round_trip_through_a_file(self, tmp_path):
        made = config(
            FocusDPOConfig,
            model_init_kwargs={"revision": "main"},
            encode_prompt_kwargs={"max_sequence_length": 64, "text_encoder_out_layers": [1, 2, 3]},
            disable_dropout=False,
            reference="initial_adapter",
            guidance_scale=2.5,
            resolution=512,
            reference_resolution=256,
            reference_positions="diagonal",
            crop="random",
            random_flip=True,
            caption_dropout=0.1,
            ties="drop",
            dataset_num_proc=2,
            precompute_ref_errors=2,
            one_forward=False,
            attention_backend="native",
            channels_last=True,
            offload_blocks=True,
            prepared="user/encoded-pairs",
            encode_variants=2,
            weighting_scheme="logit_normal",
            logit_mean=0.5,
            sampling_steps=4,
            logit_std=0.75,
            mode_scale=1.0,
            eval_seed=3,
            beta=500.0,
            loss_type=["robust", "sft"],
            loss_weights=[1.0, 0.25],
            label_smoothing=0.125,
            rejected_error_bound=0.01,
            target_gradient_factor=0.25,
            focus_prior="similarity",
            focus_matching="top_k",
            focus_blocks=["transformer_blocks.1"],
            focus_normalization="mean",
            structure_weight=0.1,
            leak_weight=0.2,
            detail_weight=0.05,
            detail_gate="alignment",
            subject_gate="shown",
            detail_threshold=0.25,
            beta_min=100.0,
            beta_max=1000.0,
            beta_warmup_steps=5,
            focus_map="uniform",
            background_weight=0.25,
            prior_weight=0.5,
            focus_sft=True,
            learning_rate=2.5e-4,
            max_steps=7,
        )
        names = [*declared(DiffusionDPOConfig), *declared(FocusDPOConfig)]
        values = {name: getattr(made, name) for name in names}
        defaults = {**DiffusionDPOConfig.__dataclass_fields__, **FocusDPOConfig.__dataclass_fields__}
        same = [name for name in names if values[name] == default_of(defaults[name])]
        # or the trip would prove nothing; precomputed errors need `encode_once`
        assert same == ["logging_nan_inf_filter", "ddp_find_unused_parameters", "encode_once"]
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({**values, "max_steps": 7, "output_dir": "unused", "use_cpu": True}))
        (again,) = TrlParser((FocusDPOConfig,)).parse_args_and_config(["--config", str(file)])
        assert again.to_dict() == made.to_dict()

    def test_command_line_wins_over_the_file(self, tmp_path):
        file = tmp_path / "config.yaml"
        file.write_text("beta: 100.0\nloss_type: [hinge, sft]\n")
        made = self.parse("--config", str(file), "--beta", "7")
        assert (made.beta, made.loss_type) == (7.0, ["hinge", "sft"])

    def test_one_loss_in_a_file_as_a_string(self, tmp_path):
        file = tmp_path / "config.yaml"
        file.write_text("loss_type: sft\nloss_weights: 0.5\n")
        made = self.parse("--config", str(file))
        assert (made.loss_type, made.loss_weights) == (["sft"], [0.5])

    def test_a_name_that_is_no_field_is_refused(self, tmp_path):
        file = tmp_path / "config.yaml"
        file.write_text("betta: 100.0\n")
        with pytest.raises(ValueError, match="betta"):
            self.parse("--config", str(file))
