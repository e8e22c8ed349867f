"""The meter sees what a stage holds at its peak, by either way of measuring."""

import time

import pytest
import torch

from globe_stream.kernels.workspace import Workspace
from globe_stream.memory import meter as module
from globe_stream.memory.meter import Meter

MIB = 1 << 20


@pytest.fixture(params=[True, False], ids=["exact", "sampled"])
def meter(request, monkeypatch):
    if request.param and not module._can_reset():
        pytest.skip("this system does not reset peaks")
    monkeypatch.setattr(module, "_can_reset", lambda: request.param)
    return Meter()


def hold(count):
    """Touch `count` bytes for long enough to be sampled."""
    block = torch.ones(count, dtype=torch.uint8)
    time.sleep(0.05)
    return int(block[0])


def test_a_stage_has_the_peak_of_what_happened_inside(meter):
    before = meter.now()
    with meter.stage("large"):
        hold(80 * MIB)
    with meter.stage("small"):
        hold(10 * MIB)
    large, small = (meter.peaks[name] - before for name in ("large", "small"))
    assert 75 * MIB < large < 100 * MIB
    assert 5 * MIB < small < 40 * MIB
    assert meter.peak == meter.peaks["large"]


def test_a_stage_measured_twice_keeps_its_highest_peak(meter):
    for size in (10, 60, 20):
        with meter.stage("again"):
            hold(size * MIB)
    assert meter.peaks["again"] >= meter.now() + 40 * MIB


def test_a_stage_that_fails_is_measured_too(meter):
    def failing():
        with meter.stage("failed"):
            hold(10 * MIB)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        failing()
    assert meter.peaks["failed"] > 0


def test_without_stages_the_peak_is_what_is_held_now(meter):
    assert abs(meter.peak - meter.now()) < 10 * MIB


# -- workspace -----------------------------------------------------------------------------------


def test_buffers_are_reused_and_grow_only_when_needed():
    space = Workspace()
    first = space.take("a", (3, 4))
    assert (first.shape, first.dtype, first.is_contiguous()) == ((3, 4), torch.float32, True)
    assert space.take("a", (2, 5)).data_ptr() == first.data_ptr()
    assert space.nbytes == 4 * 12
    larger = space.take("a", (5, 4))
    assert larger.numel() == 20
    assert space.nbytes == 4 * 20
    space.take("b", (2,), torch.float64)
    assert space.nbytes == 4 * 20 + 16
    space.clear()
    assert space.nbytes == 0
