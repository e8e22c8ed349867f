"""What an epoch leaves behind: the group's new state, and a row of metrics.

Metrics of reconstruction, codes and bank are those of the saved state. What was measured of a
state that was then rejected stands under `rejected/`, so that no row mixes the two.
"""

from dataclasses import dataclass, replace

from pydantic import JsonValue

from globe_stream.engine.metrics import MetricValues
from globe_stream.engine.records import PassCost
from globe_stream.factorization.code_statistics import CodeStatistics
from globe_stream.factorization.measure import ErrorSummary
from globe_stream.factorization.records import GroupState
from globe_stream.kernels.ridge_effect import nonfinite
from globe_stream.training.bank_update import BankUpdate
from globe_stream.training.schedule import Schedule, ScheduleState

OF_THE_PASS = ("health/", "regularization/")
"""Metrics of a measurement that describe the pass itself, whether its state is kept or not."""


@dataclass(frozen=True)
class Measured:
    """What an epoch measured of the bank and codes that it began with."""

    errors: ErrorSummary
    codes: CodeStatistics

    def metrics(self, *, rejected: bool) -> dict[str, JsonValue]:
        """By their published names, those of a `rejected` state under `rejected/`."""
        values = {**self.errors.metrics(), **self.codes.metrics()}
        if not rejected:
            return values
        return {
            name if name.startswith(OF_THE_PASS) else f"rejected/{name}": value
            for name, value in values.items()
        }


def progressed(
    saved: GroupState, after: ScheduleState, cost: PassCost, between: float, *, over: bool
) -> GroupState:
    """`saved` after one more epoch: its pass cost `cost`, all else since the last one `between` s.

    `over` says that training ends with it.
    """
    return replace(
        saved,
        stage="trained" if over else "training",
        epoch=after.epoch,
        passes=saved.passes + 1,
        bytes_read=saved.bytes_read + cost.bytes_read,
        seconds=saved.seconds + cost.seconds + between,
    )


def accepted(
    progress: GroupState, schedule: Schedule, before: ScheduleState, measured: Measured
) -> GroupState:
    """`progress` with the figures of the state that was `measured` with the settings `before`."""
    activation = schedule.activation(before.lam)
    return replace(
        progress,
        relative_frobenius_error=measured.errors.relative_frobenius_error,
        lambda_a=schedule.config.lambda_a,
        activation=activation.name,
        activation_lambda=activation.lam,
        gamma=activation.gamma,
        temperature=before.temperature,
        median_support=measured.codes.median_support,
    )


def schedule_metrics(
    schedule: Schedule, before: ScheduleState, after: ScheduleState
) -> MetricValues:
    """The settings of the epoch that began with `before`, and whether its state was rejected."""
    return {
        "alpha/temperature": before.temperature,
        "alpha/target_support": schedule.support_target(),
        "schedule/lambda": before.lam,
        "schedule/beta": schedule.beta(before),
        "schedule/damping": before.damping,
        "schedule/warmup": schedule.in_warmup(before),
        "schedule/rejected": after.rejected > before.rejected,
    }


def step_metrics(update: BankUpdate, candidates: int, stability: float) -> MetricValues:
    """What the bank's step did, and the codes that go with it, of `candidates` before pruning.

    `stability` is the mean Jaccard similarity of their supports with those before.
    """
    kept = int((update.codes != 0).sum())
    return {
        "alpha/support_stability": stability,
        "alpha/pruned_fraction": 1 - kept / candidates if candidates else 0.0,
        "bank/norm_deviation_max": update.largest_norm_change,
        "bank/revived_atoms": update.revived,
        "health/coupling_condition": update.ridge.condition_after,
        "health/nonfinite_bank": update.nonfinite,
        "health/nonfinite_codes": nonfinite(update.codes),
        "regularization/lambda_b_shrinkage": update.ridge.shrinkage,
        "regularization/lambda_b_condition_before": update.ridge.condition_before,
        "regularization/lambda_b_condition_after": update.ridge.condition_after,
    }
