# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import pytest
import torch

from tests.distributed.launch import launch
from tests.distributed.sharded import run
from tests.fixtures.pipelines import PIPELINES


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Findings of two processes with FSDP2, and of one with the whole model."""
    folder = tmp_path_factory.mktemp("sharded")
    whole = run(folder / "one")
    PIPELINES["flux2_klein"]().save_pretrained(folder / "base")
    launch("tests.distributed.sharded", folder, 2)
    return whole, torch.load(folder / "found-0.pt"), torch.load(folder / "found-1.pt")


def test_the_model_is_sharded(found):
    whole, *processes = found
    assert not any(whole["sharded"])
    for process in processes:
        assert process["straight"]["type"] == "DistributedType.FSDP"
        assert all(process["straight"]["sharded"])


def test_shards_train_as_one_model(found):
    whole, first, second = found
    assert first["straight"]["losses"] == second["straight"]["losses"]
    assert first["straight"]["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert first["straight"]["norms"] == pytest.approx(whole["norms"], rel=1e-4)
    assert first["straight"]["eval"] == pytest.approx(whole["eval"], rel=1e-4)


def test_every_process_loads_the_encoders(found):
    """With accelerate's `cpu_ram_efficient_loading` transformers would load them on the first process alone."""
    for process in found[1:]:
        assert process["loaded"]["losses"] == process["straight"]["losses"]


def test_saved_lora_is_that_of_one_process(found):
    whole, first, _ = found
    for form in ("diffusers", "peft"):
        assert whole[form].keys() == first["straight"][form].keys()
        for name, weight in whole[form].items():
            torch.testing.assert_close(first["straight"][form][name], weight, rtol=1e-4, atol=1e-6)
    assert {"adapter_model.safetensors", "pytorch_lora_weights.safetensors"} <= {*first["straight"]["files"]}
    assert "model.safetensors" not in first["straight"]["files"]


def test_resume_is_bitwise(found):
    _, first, _ = found
    assert first["resumed"]["losses"] == first["adam"]["losses"]
    for name, weight in first["adam"]["peft"].items():
        assert torch.equal(weight, first["resumed"]["peft"][name]), name


def test_a_process_that_is_not_finite_stops_all(found):
    for process in found[1:]:
        assert "no weight was changed" in process["not_finite"]["message"]
        assert process["not_finite"]["changed"] and not any(process["not_finite"]["changed"])
