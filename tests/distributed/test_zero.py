# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import pytest
import torch
from accelerate.utils import is_deepspeed_available

from tests.distributed.launch import launch
from tests.distributed.sharded import run


pytestmark = pytest.mark.skipif(
    not is_deepspeed_available(), reason="DeepSpeed is not installed (`pip install deepspeed` runs these on the CPU)"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Findings of one process without DeepSpeed."""
    return run(tmp_path_factory.mktemp("whole") / "one")


@pytest.fixture(scope="module", params=["zero2", "zero3"])
def found(request, tmp_path_factory):
    """Findings of two processes, by rank."""
    folder = tmp_path_factory.mktemp("deepspeed") / request.param
    folder.mkdir()
    launch("tests.distributed.zero", folder, 2)
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)]


def test_two_processes_train_as_one(found, whole):
    first, second = (process["straight"] for process in found)
    assert first["type"] == "DistributedType.DEEPSPEED"
    assert first["losses"] == second["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert first["norms"] == pytest.approx(whole["norms"], rel=1e-4)
    assert first["eval"] == pytest.approx(whole["eval"], rel=1e-4)


def test_saved_lora_is_that_of_one_process(found, whole):
    first = found[0]["straight"]
    for form in ("diffusers", "peft"):
        torch.testing.assert_close(first[form], whole[form], rtol=1e-4, atol=1e-6)
    assert {"adapter_model.safetensors", "pytorch_lora_weights.safetensors"} <= {*first["files"]}
    assert "model.safetensors" not in first["files"]


def test_resume_is_bitwise(found):
    straight, resumed = found[0]["adam"], found[0]["resumed"]
    assert straight["losses"] == resumed["losses"]
    torch.testing.assert_close(resumed["peft"], straight["peft"], rtol=0, atol=0)


def test_a_process_that_is_not_finite_stops_all(found):
    for process in found:
        assert "no weight was changed" in process["not_finite"]["message"]
        assert process["not_finite"]["changed"] and not any(process["not_finite"]["changed"])
