"""What every stage of seeding records once it is done, and the state that they add up to.

Each record has its metrics under their published names beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from globe_stream.engine.metrics import MetricValues
from globe_stream.engine.records import PassCost
from globe_stream.factorization.code_statistics import CodeStatistics
from globe_stream.factorization.measure import ErrorSummary
from globe_stream.factorization.records import GroupState
from globe_stream.io.records import Json, Record

NO_ACTIVATION = "none"


@dataclass(frozen=True)
class StageRecord(Record):
    """Base of the stages' records: what the stage cost."""

    cost: PassCost

    def metrics(self) -> MetricValues:
        """By their published names."""
        return self.cost.metrics()


@dataclass(frozen=True)
class StatisticsRecord(StageRecord):
    """Weights are normalized as (W - mean) / scale."""

    mean: float
    scale: float

    def metrics(self) -> MetricValues:
        return {"mean": self.mean, "scale": self.scale, **super().metrics()}


@dataclass(frozen=True)
class ProxiesRecord(StageRecord):
    """The proxies: the share of the normalized weights' energy that they hold, and chosen rows.

    `agreement` is ||mean||_F of the aligned row spaces, for Procrustes proxies, whose energy is
    that of experts turned by nearly orthonormal rotations. Each of `processes` spilled its share.
    """

    energy_captured: float
    agreement: float | None = None
    rows: tuple[int, ...] | None = None
    processes: int = 1

    def metrics(self) -> MetricValues:
        values: dict[str, JsonValue] = {"energy_captured": self.energy_captured}
        if self.agreement is not None:
            values["agreement"] = self.agreement
        if self.rows is not None:
            values["selected_rows"] = list(self.rows)
        return {**values, **super().metrics()}


@dataclass(frozen=True)
class GramRecord(StageRecord):
    """The Gram matrix of the proxies, or their norms alone where none is formed."""


@dataclass(frozen=True)
class AtomsRecord(StageRecord):
    """Bank and codes: what the method said of itself, and statistics of the codes."""

    explained_variance: float
    proxy_relative_error: float
    codes: CodeStatistics
    method_stats: Json = field(default_factory=dict)

    def metrics(self) -> MetricValues:
        return {
            "explained_variance": self.explained_variance,
            "method_stats": self.method_stats,
            **self.codes.metrics(),
            "proxy_relative_error": self.proxy_relative_error,
            **super().metrics(),
        }


@dataclass(frozen=True)
class MeasureRecord(StageRecord):
    """The errors of the weights with refitted adapters."""

    errors: ErrorSummary

    def metrics(self) -> MetricValues:
        return {**self.errors.metrics(), **super().metrics()}


@dataclass(frozen=True)
class BaselineRecord(StageRecord):
    """The equal-parameter SVD of rank k = `rank`, over `experts` of the group's."""

    rank: int
    experts: int
    relative_frobenius_error: float

    def metrics(self) -> MetricValues:
        return {
            "svd/rank": self.rank,
            "svd/experts": self.experts,
            "svd/relative_frobenius_error": self.relative_frobenius_error,
            **super().metrics(),
        }


STAGES: Mapping[str, type[StageRecord]] = {
    "statistics": StatisticsRecord,
    "proxies": ProxiesRecord,
    "gram": GramRecord,
    "atoms": AtomsRecord,
    "measure": MeasureRecord,
    "baseline": BaselineRecord,
}
"""The stages of seeding in their order, each with the type of its record."""


@dataclass(frozen=True)
class SeedingRecords:
    """The records of all stages of one group."""

    statistics: StatisticsRecord
    proxies: ProxiesRecord
    gram: GramRecord
    atoms: AtomsRecord
    measure: MeasureRecord
    baseline: BaselineRecord

    def state(
        self, *, method: str, lambda_a: float, squared_norm: float, passes: int
    ) -> GroupState:
        """The state of a group that is seeded with `method`, after `passes` over its experts."""
        costs = [getattr(self, stage).cost for stage in STAGES]
        return GroupState(
            stage="seeded",
            epoch=0,
            passes=passes,
            relative_frobenius_error=self.measure.errors.relative_frobenius_error,
            squared_norm=squared_norm,
            svd_relative_error=self.baseline.relative_frobenius_error,
            svd_sampled=self.baseline.experts,
            mean=self.statistics.mean,
            scale=self.statistics.scale,
            lambda_a=lambda_a,
            activation=NO_ACTIVATION,
            activation_lambda=0.0,
            gamma=1.0,
            temperature=1.0,
            median_support=self.atoms.codes.median_support,
            explained_variance=self.atoms.explained_variance,
            seeding_method=method,
            bytes_read=sum(cost.bytes_read for cost in costs),
            seconds=sum(cost.seconds for cost in costs),
        )
