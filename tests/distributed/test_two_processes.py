# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import pytest
import torch

from tests.distributed.launch import launch
from tests.distributed.two_processes import elastic


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Findings of two processes (by rank), and of one."""
    folder = tmp_path_factory.mktemp("processes")
    one = elastic(folder / "of-one")  # its checkpoints are what two processes go on with
    for processes in (2, 1):
        launch("tests.distributed.two_processes", folder, processes)
    found = {name: torch.load(folder / f"found-{name}.pt") for name in ("2-0", "2-1", "1-0")}
    found["1-0"]["straight"] = one
    return found


def test_there_are_two_processes(found):
    assert [found[name]["processes"] for name in ("2-0", "2-1", "1-0")] == [2, 2, 1]


def test_processes_hold_equal_weights(found):
    for part, key in (("epoch", "weights"), ("resume", "straight"), ("stream", "weights")):
        assert torch.equal(found["2-0"][part][key], found["2-1"][part][key])


def test_two_processes_are_one_with_the_larger_batch(found):
    """10 rows, 4 an update: the last update has 2 rows in one process, and in the other one that does not count."""
    two, one = found["2-0"]["epoch"], found["1-0"]["epoch"]
    assert len(two["losses"]) == len(one["losses"]) == 3
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["margins"] == pytest.approx(one["margins"], rel=1e-3, abs=1e-5)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-4, atol=1e-6)


def test_evaluation_does_not_depend_on_the_number_of_processes(found):
    two, one = found["2-0"]["epoch"]["eval"], found["1-0"]["epoch"]["eval"]
    assert two == found["2-1"]["epoch"]["eval"]
    assert two == pytest.approx(one, rel=1e-4, abs=1e-5)


def test_resume_is_bitwise(found):
    resume = found["2-0"]["resume"]
    assert torch.equal(resume["straight"], resume["resumed"])
    assert resume["betas"][0] == resume["betas"][1] == found["2-1"]["resume"]["betas"][0]
    assert {"rng_state_0.pth", "rng_state_1.pth", "pytorch_lora_weights.safetensors"} <= {*resume["files"]}


@pytest.mark.parametrize(("before", "after"), [("2-0", "1-0"), ("1-0", "2-0")], ids=["two to one", "one to two"])
def test_resume_with_another_number_of_processes(found, before, after):
    """What an epoch of 10 rows lacks after its first update of 4 is trained, each row once, and ends in the same weights."""
    straight, resumed = found[before]["straight"], found[after]["elastic"]
    assert sorted(straight["rows"]) == [*range(10)]
    assert len(resumed["rows"]) == len({*resumed["rows"]}) == 6
    assert {*resumed["rows"]} < {*straight["rows"]}
    assert straight["steps"] == resumed["steps"] == 3
    torch.testing.assert_close(straight["weights"], resumed["weights"], rtol=1e-4, atol=1e-6)


def test_a_process_that_is_not_finite_stops_all(found):
    for rank in ("2-0", "2-1"):
        assert found[rank]["not_finite"]["unchanged"]
        assert "focus map" in found[rank]["not_finite"]["message"]


def test_streams(found):
    assert found["2-0"]["stream"]["eval"] == found["2-1"]["stream"]["eval"]
    assert found["2-0"]["stream"]["eval"] != pytest.approx(0.6931, abs=1e-4)
