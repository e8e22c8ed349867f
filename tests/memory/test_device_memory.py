"""The second budget: of a GPU's own memory."""

import json
import re

import pytest
import torch
from strict_device import strict

from globe_stream.errors import InputError
from globe_stream.memory.device_memory import STEP, device_limit, within

GIB = 1 << 30
CUDA = torch.device("cuda")


def test_a_gpu_gives_nine_tenths_unless_it_is_told_how_much():
    with strict("cuda", memory=10 * GIB):
        assert device_limit(CUDA, None) == 9 * GIB
        assert device_limit(CUDA, "4GiB") == 4 * GIB
        with pytest.raises(InputError, match=r"the GPU has 10\.00 GiB\. Give less"):
            device_limit(CUDA, "11GiB")


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_where_memory_is_the_machines_there_is_no_second_budget(kind):
    assert device_limit(torch.device(kind), None) is None
    with pytest.raises(InputError, match=f"is for cuda: {kind} computes"):
        device_limit(torch.device(kind), "4GiB")


def test_the_tighter_budget_holds_and_a_base_that_differs_a_little_changes_nothing():
    base = 300 << 20
    assert within(8 * GIB, base, None) == 8 * GIB
    assert within(2 * GIB, base, 16 * GIB) == 2 * GIB
    lowered = within(64 * GIB, base, 4 * GIB)
    assert 0 <= base + 4 * GIB - lowered < STEP
    assert within(64 * GIB, base + 12345, 4 * GIB) == lowered


def test_plan_prices_a_gpu_that_another_machine_has(tell, checkpoint):
    command = ("plan", checkpoint, "--device", "cuda", "--memory", "64GiB", "--json")
    wide = json.loads(tell(*command).out)
    tight = json.loads(tell(*command, "--device-memory", "2GiB").out)
    assert wide["memory_budget_bytes"] == 64 * GIB
    assert 2 * GIB - STEP < tight["memory_budget_bytes"] < 4 * GIB


def test_the_budget_that_is_too_small_is_the_one_that_is_named(tell, checkpoint):
    """And what is said to suffice does."""
    command = ("plan", checkpoint, "--device", "cuda")
    told = tell(*command, "--device-memory", "1MiB")
    assert (told.code, told.out, len(told.err.splitlines())) == (2, "", 1)
    assert told.err.startswith("globe-stream: --device-memory 1.00 MiB: stage ")
    enough = re.search(r"Raise --device-memory to (\d+MiB)", told.err)
    assert enough
    assert tell(*command, "--device-memory", enough[1]).code == 0
    told = tell(*command, "--device-memory", "8GiB", "--memory", "1MiB")
    assert told.err.startswith("globe-stream: --memory 1.00 MiB: stage ")


def test_plan_refuses_a_second_budget_for_unified_memory(tell, checkpoint):
    told = tell("plan", checkpoint, "--device", "mps", "--device-memory", "2GiB")
    assert (told.code, told.out, len(told.err.splitlines())) == (2, "", 1)
    assert "--device-memory is for cuda: mps computes" in told.err


def test_a_second_budget_without_a_gpu_is_refused_and_nothing_is_made(tell, checkpoint, tmp_path):
    run = tmp_path / "run"
    told = tell("seed", checkpoint, "--run", run, "--device", "cpu", "--device-memory", "2GiB")
    assert (told.code, len(told.err.splitlines())) == (2, 1)
    assert "--device-memory is for cuda" in told.err
    assert not run.exists()


@pytest.mark.slow
def test_the_allocator_of_a_gpu_is_capped(tell, checkpoint, tmp_path):
    with strict("cuda") as pretended:
        command = ("seed", checkpoint, "--run", tmp_path / "run", "--families", "up")
        told = tell(*command, "--device", "cuda", "--device-memory", "4GiB", "--memory", "64GiB")
        assert told.code == 0, told.err
    shares = [share for name, *rest in pretended.called if name == "fraction" for share in rest]
    assert shares
    assert all(share == pytest.approx(4 / 16, abs=0.01) for share in shares)
