# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""What this package expects of TRL and transformers, and what it promises about its own imports and connections."""

import ast
import graphlib
import importlib
import importlib.metadata
import inspect
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import trl
import trl.trainer.base_trainer
from packaging.requirements import Requirement
from transformers import Trainer

import trl_focus
from tests.fixtures.trainers import make_trainer
from trl_focus import _compat
from trl_focus._compat import _BaseConfig, _BaseTrainer
from trl_focus.trainer.diffusion_dpo_trainer import DiffusionDPOTrainer
from trl_focus.trainer.focus_dpo_trainer import FocusDPOTrainer


PACKAGE = Path(trl_focus.__file__).parent
TREES = {path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


class TestBases:
    def test_class_attributes(self):
        for name in ("_tag_names", "_name", "_paper"):
            assert type(getattr(_BaseTrainer, name)) is type(getattr(DiffusionDPOTrainer, name)), name
            assert getattr(DiffusionDPOTrainer, name) != getattr(_BaseTrainer, name), name
            assert getattr(FocusDPOTrainer, name) != getattr(DiffusionDPOTrainer, name), name
        assert {"title", "id", "citation"} <= FocusDPOTrainer._paper.keys()

    def test_scaling_of_the_loss_is_ours(self):
        # Without it, the loss would be divided by `gradient_accumulation_steps` once more
        assert Trainer.loss_is_scaled_for_ga is None
        assert DiffusionDPOTrainer.loss_is_scaled_for_ga is True
        assert "self.loss_is_scaled_for_ga" in inspect.getsource(Trainer.training_step)

    def test_valid_dict_fields_are_parsed_by_transformers(self):
        assert isinstance(_BaseConfig._VALID_DICT_FIELDS, list)
        assert {*_BaseConfig._VALID_DICT_FIELDS} < {*trl_focus.DiffusionDPOConfig._VALID_DICT_FIELDS}
        assert "_VALID_DICT_FIELDS" not in vars(trl_focus.FocusDPOConfig)

    @pytest.mark.parametrize(
        "name, parameters",
        [
            ("create_model_card", ["model_name", "dataset_name", "tags"]),
            ("_save", ["output_dir", "state_dict"]),
            ("_save_checkpoint", ["model", "trial"]),
            ("_push_from_checkpoint", ["checkpoint_folder"]),
            ("_finish_current_push", []),
            ("init_hf_repo", ["token", "private"]),
            ("push_to_hub", ["commit_message", "blocking", "token", "revision", "private", "kwargs"]),
            ("_get_num_items_in_batch", ["batch_samples", "device"]),
            ("compute_loss", ["model", "inputs", "return_outputs", "num_items_in_batch"]),
            ("training_step", ["model", "inputs", "num_items_in_batch"]),
            ("prediction_step", ["model", "inputs", "prediction_loss_only", "ignore_keys"]),
            ("log", ["logs", "start_time"]),
            ("get_train_dataloader", []),
            ("get_eval_dataloader", ["eval_dataset"]),
            ("_send_telemetry", []),
        ],
    )
    def test_overridden_methods_have_the_base_signature(self, name, parameters):
        for cls in (_BaseTrainer, DiffusionDPOTrainer):
            assert list(inspect.signature(getattr(cls, name)).parameters)[1:] == parameters, cls
        assert getattr(DiffusionDPOTrainer, name) is not getattr(_BaseTrainer, name)

    def test_create_optimizer(self):
        # `model` came with a later transformers; ours takes it and hands it on where it is given
        assert list(inspect.signature(_BaseTrainer.create_optimizer).parameters)[1:] in ([], ["model"])

    def test_evaluation_loop_takes_a_prefix(self):
        assert "metric_key_prefix" in inspect.signature(_BaseTrainer.evaluation_loop).parameters

    def test_train_takes_a_checkpoint_first(self):
        assert list(inspect.signature(Trainer.train).parameters)[1] == "resume_from_checkpoint"

    def test_transformers_reads_the_number_of_pairs_from_us(self):
        assert "self._get_num_items_in_batch(batch_samples, device)" in inspect.getsource(Trainer.get_batch_samples)

    def test_dropout_helper(self):
        assert list(inspect.signature(_compat.disable_dropout_in_model).parameters) == ["model"]

    def test_arguments_of_the_constructor_are_trls(self):
        ours = inspect.signature(DiffusionDPOTrainer.__init__).parameters
        theirs = inspect.signature(trl.DPOTrainer.__init__).parameters
        shared = [name for name in ours if name in theirs]
        assert shared == [name for name in theirs if name in ours]  # in TRL's order
        assert [*ours][:4] == [*theirs][:4] == ["self", "model", "ref_model", "args"]
        assert {*ours} - {*theirs} == set()

    def test_no_processing_class_is_needed(self, tmp_path):
        assert make_trainer(output_dir=tmp_path, family="sd15").processing_class is None


class TestNoConnections:
    @pytest.fixture
    def sent(self, monkeypatch):
        """Records every sign of a connection, with nothing set that would hold telemetry back."""
        sent = []
        for name in ("CI", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_TELEMETRY"):
            monkeypatch.delenv(name, raising=False)
        for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
            monkeypatch.setattr(huggingface_hub.constants, name, False)

        def record(name):
            return lambda *args, **kwargs: sent.append(name)

        monkeypatch.setattr(huggingface_hub.utils, "send_telemetry", record("send_telemetry of the Hub"))
        monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", record("send_telemetry of TRL"))

        def refuse(*args, **kwargs):
            sent.append(f"connection to {args}")
            raise OSError("no connections in this test")

        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket.socket, "connect_ex", refuse)
        return sent

    @pytest.mark.parametrize("trainer_class", [DiffusionDPOTrainer, FocusDPOTrainer])
    def test_a_run_sends_nothing(self, sent, tmp_path, trainer_class):
        trainer = make_trainer(
            trainer_class, tmp_path, family="sd15", max_steps=1, save_strategy="steps", save_steps=1
        )
        trainer.train()
        trainer.save_model()
        trainer.create_model_card()
        assert sent == []

    def test_the_traps_work(self, sent, tmp_path):
        trainer = make_trainer(output_dir=tmp_path, family="sd15")
        _BaseTrainer._send_telemetry(trainer)
        assert sent == ["send_telemetry of TRL"]
        with pytest.raises(Exception, match="no connections|[Cc]onnect"):
            huggingface_hub.HfApi().model_info("someone/something", timeout=1)
        assert len(sent) > 1


class TestPublicNames:
    def test_import_is_light(self):
        code = (
            "import sys; import trl_focus; dir(trl_focus); trl_focus.__version__; "
            "print(*{'torch', 'numpy', 'transformers', 'diffusers', 'datasets', 'peft', 'trl', 'PIL'} & {*sys.modules})"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
        )
        assert done.stdout.split() == []

    def test_every_name_resolves_to_what_is_meant(self):
        assert trl_focus.__all__ == sorted(trl_focus.__all__)
        for name in trl_focus.__all__:
            value = getattr(trl_focus, name)
            assert value.__name__ == name
            assert value.__module__.startswith("trl_focus.")
        assert {*trl_focus.__all__} <= {*dir(trl_focus)}

    def test_names_are_those_of_the_type_checking_block(self):
        (block,) = [
            node for node in TREES[Path("__init__.py")].body if isinstance(node, ast.If) and is_type_checking(node)
        ]
        declared = {name.name: node.module for node in block.body for name in node.names}
        assert declared == trl_focus._PUBLIC
        assert all(node.level == 1 for node in block.body)

    def test_unknown_name(self):
        with pytest.raises(AttributeError, match="'trl_focus' has no attribute 'DPOTrainer'"):
            trl_focus.DPOTrainer  # noqa: B018

    def test_every_module_imports(self):
        for path in TREES:
            if path.name != "__main__.py":
                importlib.import_module(module_of(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def module_of(path: Path) -> str:
    return ".".join(("trl_focus", *path.with_suffix("").parts)).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Absolute names of all that a module imports, inside functions as well, but for type checking."""
    tree = TREES[path]
    skipped = {child for node in ast.walk(tree) if is_type_checking(node) for child in ast.walk(node)}
    package = ("trl_focus", *path.parent.parts)
    names = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


MODULES = {module_of(path) for path in TREES}


def own_imports(path: Path) -> set[str]:
    """Our modules that a module imports."""
    found = set()
    for name in imports(path):
        if name.split(".")[0] == "trl_focus":
            found.add(name if name in MODULES else name.rpartition(".")[0])
    return found


class TestImportRules:
    def test_the_scan_sees_imports(self):
        assert "trl_focus.noise" in own_imports(Path("families/base.py"))
        assert "trl_focus.families" in own_imports(Path("trainer/pipeline.py"))
        typed = own_imports(Path("trainer/pipeline.py"))
        assert not any("config" in name for name in typed)  # imported for type checking alone
        assert "trl.trainer.base_config._BaseConfig" in imports(Path("_compat.py"))

    @pytest.mark.parametrize("path", TREES, ids=str)
    def test_no_torchvision(self, path):
        assert not any(name.split(".")[0] == "torchvision" for name in imports(path))
        constants = (node.value for node in ast.walk(TREES[path]) if isinstance(node, ast.Constant))
        assert "torchvision" not in constants  # nor by name, through `import_module`

    @pytest.mark.parametrize("path", TREES, ids=str)
    def test_private_parts_of_trl_come_from_one_module(self, path):
        if path != Path("_compat.py"):
            assert not any(name.split(".")[0] == "trl" for name in imports(path))

    @pytest.mark.parametrize(
        "path", [path for path in TREES if path.parts[0] in ("focus", "losses.py", "noise.py")], ids=str
    )
    def test_formulas_stand_alone(self, path):
        allowed = {module_of(other) for other in TREES if other.parts[0] == path.parts[0]}
        assert own_imports(path) <= allowed

    @pytest.mark.parametrize("path", TREES, ids=str)
    def test_only_what_drives_trainers_imports_them(self, path):
        if path.parts[0] not in ("trainer", "cli"):
            assert not any(name.startswith("trl_focus.trainer") for name in own_imports(path))

    def test_no_circles(self):
        graph = {module_of(path): own_imports(path) - {module_of(path)} for path in TREES}
        assert len([*graphlib.TopologicalSorter(graph).static_order()]) >= len(TREES)


def test_versions_are_among_those_declared():
    """The environment of these tests is one that users may have."""
    declared = (PACKAGE.parent / "pyproject.toml").read_text().split("dependencies = ")[1].split("]")[0]
    for line in ast.literal_eval(f"{declared}]"):
        requirement = Requirement(line)
        installed = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(installed, prereleases=True), (line, installed)
