"""What training says of settings that mean something else, and of targets that it missed."""

import pytest

from globe_stream.config import TrainConfig
from globe_stream.training.schedule import ScheduleState
from globe_stream.training.warnings import missed_targets

STATE = ScheduleState(epoch=10, error=0.5, temperature=1.0)


@pytest.mark.parametrize(("target", "median"), [("12", 12.0), ("12", 15.0), ("1", 2.0),
                                                ("none", 40.0), ("60", 50.0)])  # fmt: skip
def test_a_target_that_was_reached_or_does_not_bind_is_not_mentioned(target, median):
    assert missed_targets(TrainConfig(target_support=target), STATE, 60, median) == []


@pytest.mark.parametrize(("state", "reason"), [
    (ScheduleState(epoch=10, rejected=9), "9 of them raised relF by more than guard 0.003"),
    (ScheduleState(epoch=10, temperature=1e-3), "at its limit, temperature_min 0.001"),
    (STATE, "It had not settled: more epochs may reach it"),
])  # fmt: skip
def test_a_target_that_was_missed_is_named_with_what_was_reached_and_why(state, reason):
    (line,) = missed_targets(TrainConfig(target_support="1"), state, 60, 15.0)
    assert line.startswith("target_support 1 was not reached: the median support is 15 after 10")
    assert reason in line


def test_the_upper_limit_is_the_reason_when_supports_are_too_small():
    state = ScheduleState(epoch=10, temperature=1e3)
    (line,) = missed_targets(TrainConfig(target_support="40"), state, 60, 5.0)
    assert "temperature_max 1000" in line
