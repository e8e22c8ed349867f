"""Dense exports of what a bank is compared with: truncated SVDs and experts rounded to nearest.

Source: docs/measurements.md, section Beside quantization.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Unpack

from globe_stream.export.dense import DenseExport
from globe_stream.export.order import ExportOptions, ExportOrder
from globe_stream.export.result import ExportResult
from globe_stream.export.shard_rewriter import Replacements
from globe_stream.factorization.reconstruction import Approximation
from globe_stream.factorization.rounded_baseline import Rounded, RoundedSvd, Unchanged
from globe_stream.factorization.svd_baseline import SvdApproximation
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.io.records import Json
from globe_stream.memory.planner import ExportPlan, plan_export, plan_svd


def export_svd(
    run: Path, out: Path, *, bits: int | None = None, **options: Unpack[ExportOptions]
) -> ExportResult:
    """As `export_dense`, but with every expert's truncated SVD of as many parameters.

    The rank of a group's experts is `GroupSizes.svd_rank`; with `bits` its factors are rounded to
    nearest. The run need not be trained: only its sizes are used. Source: docs/design.md, section
    Problem.
    """
    order = ExportOrder(run, out, **options)
    with order.source(trained=False) as source:
        return SvdExport(source, order, bits).carry_out()


def export_rounded(
    run: Path, out: Path, *, bits: int, rebuilt: bool = False, **options: Unpack[ExportOptions]
) -> ExportResult:
    """As `export_dense`, with the experts of the run rounded to nearest in `bits` bits.

    The original ones, or with `rebuilt` those that the run's banks reconstruct.
    """
    order = ExportOrder(run, out, **options)
    with order.source(trained=rebuilt) as source:
        return RoundedExport(source, order, bits, rebuilt).carry_out()


@dataclass(frozen=True)
class SvdExport(DenseExport):
    """Truncated SVDs, their factors in `bits` bits where that is not None."""

    bits: int | None

    kind = "svd"

    @property
    def settings(self) -> Json:
        """Ranks by group, and the bits."""
        bits: Json = {} if self.bits is None else {"bits": self.bits}
        return {**super().settings, "ranks": list(self._ranks), **bits}

    @cached_property
    def plan(self) -> ExportPlan:
        """How one SVD at a time fits the memory."""
        return _svd_plan(self.source, self.order.memory)

    @contextmanager
    def replacements(self) -> Iterator[Replacements]:
        """The SVDs."""
        yield Truncated(self._ranks, self.bits)

    @property
    def _ranks(self) -> tuple[int, ...]:
        return tuple(fitted.group.sizes.svd_rank for fitted in self.source.groups)


@dataclass(frozen=True)
class Truncated:
    """Truncated SVDs of these ranks by group."""

    ranks: tuple[int, ...]
    bits: int | None

    def of(self, number: int) -> Approximation:
        """Those of the group with this number."""
        rank = self.ranks[number]
        return SvdApproximation(rank) if self.bits is None else RoundedSvd(rank, self.bits)


@dataclass(frozen=True)
class RoundedExport(DenseExport):
    """Experts rounded to nearest, those of the source or those `rebuilt` from the banks."""

    bits: int
    rebuilt: bool

    kind = "rounded"

    @property
    def settings(self) -> Json:
        """Bits, and of which experts."""
        return {**super().settings, "bits": self.bits, "rebuilt": self.rebuilt}

    @cached_property
    def plan(self) -> ExportPlan:
        """How it fits the memory; rounding takes less than a spectrum."""
        if not self.rebuilt:
            return _svd_plan(self.source, self.order.memory)
        groups = [fitted.group for fitted in self.source.groups]
        return plan_export(groups, self.order.memory, rounds=True)

    @contextmanager
    def replacements(self) -> Iterator[Replacements]:
        """What is rounded, rounded."""
        if not self.rebuilt:
            yield RoundedToNearest(Originals(), self.bits)
            return
        with super().replacements() as rebuilt:
            yield RoundedToNearest(rebuilt, self.bits)


@dataclass(frozen=True)
class Originals:
    """The experts as they are."""

    def of(self, number: int) -> Approximation:
        """Those of any group."""
        del number
        return Unchanged()


@dataclass(frozen=True)
class RoundedToNearest:
    """What `inner` puts in the experts' place, in `bits` bits."""

    inner: Replacements
    bits: int

    def of(self, number: int) -> Approximation:
        """Those of the group with this number."""
        return Rounded(self.inner.of(number), self.bits)


def _svd_plan(source: TrainedRun, memory: int | None) -> ExportPlan:
    plans = [plan_svd(fitted.group.experts, memory) for fitted in source.groups]
    return max(plans, key=lambda one: one.estimate_bytes)
