"""What an epoch leaves: a rejected state's figures stand apart, the saved state's stay."""

import pytest

from globe_stream.config import TrainConfig
from globe_stream.engine.records import PassCost
from globe_stream.factorization.code_statistics import CodeStatistics
from globe_stream.factorization.measure import ErrorSummary
from globe_stream.factorization.records import GroupState
from globe_stream.factorization.solver_health import SolverHealth
from globe_stream.training.epoch_record import Measured, accepted, progressed, schedule_metrics
from globe_stream.training.schedule import Schedule, ScheduleState

SOLVER = SolverHealth(1, 2, 30.0, 0, 0.01, 40.0, 20.0, 0.1)
MEASURED = Measured(
    ErrorSummary(0.7, 0.9, 0.5, {"0": 0.6, "1": 0.8}, 0, SOLVER),
    CodeStatistics(7.0, 7.5, 9.0, None, 1.0, 0.5, 0.3, (1, 2), 0, 1.0, 1.0, 0.2, 0.1),
)
SAVED = GroupState(
    stage="training", epoch=3, passes=7, relative_frobenius_error=0.4, squared_norm=9.0,
    svd_relative_error=0.39, svd_sampled=12, mean=0.0, scale=1.0, lambda_a=1e-4,
    activation="silu", activation_lambda=0.5, gamma=3.0, temperature=2.0, median_support=5.0,
    explained_variance=0.3, seeding_method="svd", bytes_read=100, seconds=2.0,
)  # fmt: skip
SCHEDULE = Schedule(TrainConfig(epochs=9, target_support="none", lambda_a=1e-3), 6, 2.0)
COST = PassCost(50, 1.5, 0.1)


def test_a_rejected_state_is_told_apart():
    kept, rejected = (MEASURED.metrics(rejected=flag) for flag in (False, True))
    assert kept["recon/by_layer"] == rejected["rejected/recon/by_layer"] == {"0": 0.6, "1": 0.8}
    assert kept["alpha/median_support"] == rejected["rejected/alpha/median_support"] == 7.0
    assert rejected["health/cholesky_fallbacks"] == 1, "of the pass, whatever became of its state"
    for name in rejected:
        assert name.startswith(("rejected/", "health/", "regularization/")), name
    assert {name.removeprefix("rejected/") for name in rejected} == set(kept)


def test_progress_keeps_every_figure_of_the_saved_state():
    after = ScheduleState(epoch=4, error=0.4, rejected=1)
    found = progressed(SAVED, after, COST, 0.25, over=False)
    assert (found.epoch, found.passes, found.bytes_read, found.seconds) == (4, 8, 150, 3.75)
    last = progressed(SAVED, after, COST, 0.25, over=True)
    assert (found.stage, last.stage) == ("training", "trained")
    assert found.relative_frobenius_error == 0.4
    assert (found.median_support, found.activation_lambda, found.temperature) == (5.0, 0.5, 2.0)


def test_an_accepted_state_takes_the_figures_that_were_measured():
    before = ScheduleState(epoch=3, lam=0.25, temperature=1.5)
    found = accepted(SAVED, SCHEDULE, before, MEASURED)
    assert (found.relative_frobenius_error, found.median_support) == (0.7, 7.0)
    assert (found.activation_lambda, found.gamma, found.temperature) == (0.25, 2.0, 1.5)
    assert (found.lambda_a, found.squared_norm, found.passes) == (1e-3, 9.0, 7)


@pytest.mark.parametrize("rejected", [0, 1])
def test_the_settings_of_the_epoch_are_those_it_began_with(rejected):
    before = ScheduleState(epoch=3, lam=0.25, temperature=1.5, damping=0.5)
    after = ScheduleState(epoch=4, lam=0.5, temperature=3.0, damping=1.0, rejected=rejected)
    found = schedule_metrics(SCHEDULE, before, after)
    assert found["schedule/lambda"] == 0.25
    assert (found["alpha/temperature"], found["schedule/damping"]) == (1.5, 0.5)
    assert found["schedule/rejected"] is bool(rejected)
