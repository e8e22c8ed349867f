"""Signals at random moments of every stage; `benchmarks/faults.py --kills 200` is the long form."""

import kills
import pytest

TRIALS = 15


@pytest.mark.slow
def test_any_signal_anywhere_leaves_the_results_as_they_are(tmp_path):
    reference = kills.Reference(kills.write_checkpoint(tmp_path / "model"), tmp_path)
    *_, outcome = kills.carry_out(reference, kills.plan(reference, TRIALS, 0), tmp_path)
    assert outcome.wrong == []
    assert outcome.trials == TRIALS
    assert set(outcome.stages) == set(kills.STAGES)
    assert set(outcome.faults) == {number.name for number in kills.SIGNALS}


def test_a_plan_goes_through_every_stage_and_signal():
    class Counts:
        events = dict.fromkeys(kills.STAGES, 7)

    trials = kills.plan(Counts(), 30, 1)  # type: ignore[arg-type]
    assert {(one.stage, one.number) for one in trials} == {
        (stage, number) for stage in kills.STAGES for number in kills.SIGNALS
    }
    assert {one.event for one in trials} <= {None, *range(1, 8)}
    assert trials == kills.plan(Counts(), 30, 1)  # type: ignore[arg-type]
    assert trials != kills.plan(Counts(), 30, 2)  # type: ignore[arg-type]
