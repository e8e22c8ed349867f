"""What a sweep found: rows by point and group of experts, read back from the points' runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from globe_stream.commands.sweep.arrangement import PassCount
from globe_stream.commands.sweep.grid import Point, Values
from globe_stream.engine.metrics import METRICS_FILE, MetricRow, read_metrics
from globe_stream.errors import GlobeError
from globe_stream.factorization.error_sums import ErrorSums, pooled
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.records import run_header, seeded_state
from globe_stream.factorization.svd_baseline import ENERGIES, Spectrum, svd_curve
from globe_stream.io.records import Record
from globe_stream.seeding.methods import proxies_for
from globe_stream.seeding.records import AtomsRecord, MeasureRecord
from globe_stream.store import arrays
from globe_stream.store.run import Run


@dataclass(frozen=True)
class SweepRow(Record):
    """One point on one group of experts; costs are those of this point alone.

    `method_seconds` are those of atoms and codes, `seconds` of everything; `passes` are bytes read
    over the bytes of the group's experts.
    """

    unit: str
    point: str
    options: Values
    method: str
    proxies: str
    relative_frobenius_error: float  # of the weights, adapters refitted
    seed_relative_frobenius_error: float
    svd_equal_parameters_relative_error: float
    parameter_ratio: float
    proxy_relative_error: float
    explained_variance: float
    median_support: float
    epoch: int
    method_seconds: float
    seconds: float
    bytes_read: int
    passes: float
    peak_memory_bytes: int
    price_bytes: int


@dataclass(frozen=True)
class SweepPoint(Record):
    """One point, all families together."""

    name: str
    options: Values
    run: str
    parameters_kept: float
    relative_frobenius_error: float
    svd_equal_parameters_relative_error: float
    bits_per_byte: float | None = None
    svd_bits_per_byte: float | None = None


@dataclass(frozen=True, kw_only=True)
class SweepResult(Record):
    """Points as they were asked for, rows of each by group of experts, and what sharing saved.

    `svd_equal_parameters_relative_error` has those groups for which all points agree.
    """

    format: int = 1
    model: str
    memory_budget_bytes: int
    options: tuple[str, ...]
    svd_equal_parameters_relative_error: dict[str, float]
    svd_curve: tuple[tuple[float, float], ...] = ()
    """(parameters kept, relF) of the truncated SVD at every rank."""
    original_bits_per_byte: float | None = None
    passes: PassCount
    points: tuple[SweepPoint, ...]
    rows: tuple[SweepRow, ...]


def svd_errors(rows: Sequence[SweepRow]) -> dict[str, float]:
    """The error of the equal-parameter SVD by group, of the groups where all `rows` agree."""
    found: dict[str, set[float]] = {}
    for row in rows:
        found.setdefault(row.unit, set()).add(row.svd_equal_parameters_relative_error)
    return {unit: errors.pop() for unit, errors in found.items() if len(errors) == 1}


def rows_of(point: Point, path: Path, groups: Sequence[ExpertGroup]) -> list[SweepRow]:
    """The rows of `point`, whose run of `groups` is at `path`."""
    run = Run(path, writable=False)
    metrics = read_metrics(path / METRICS_FILE)
    return [_row(point, run, group, metrics) for group in groups]


def point_of(point: Point, path: Path, rows: Sequence[SweepRow]) -> SweepPoint:
    """The figures of `point`, whose run at `path` has `rows`, all families pooled."""
    run = Run(path, writable=False)
    groups = run_header(run).groups
    states = [seeded_state(run, group.key) for group in groups]
    sizes = [group.experts * group.p * group.d for group in groups]
    kept = sum(row.parameter_ratio * size for row, size in zip(rows, sizes, strict=True))
    svd = [
        ErrorSums.from_relative(row.svd_equal_parameters_relative_error, state.squared_norm)
        for row, state in zip(rows, states, strict=True)
    ]
    return SweepPoint(
        point.name,
        point.values,
        str(path),
        kept / sum(sizes),
        pooled(state.errors for state in states).relative_error,
        pooled(svd).relative_error,
    )


def curve_of(path: Path) -> tuple[tuple[float, float], ...]:
    """The errors of the truncated SVD at every rank, of the experts of the run at `path`.

    Empty where a run of an earlier version did not keep their spectra.
    """
    run = Run(path, writable=False)
    spectra = [
        Spectrum(
            group.sizes,
            torch.from_numpy(arrays.read(run.array(f"{group.key}/{ENERGIES}"))),
            seeded_state(run, group.key).squared_norm,
        )
        for group in run_header(run).groups
        if run.has(f"{group.key}/{ENERGIES}")
    ]
    return tuple(svd_curve(spectra))


def _row(point: Point, run: Run, group: ExpertGroup, metrics: Sequence[MetricRow]) -> SweepRow:
    state = seeded_state(run, group.key)
    atoms = run.state(f"{group.key}:atoms", AtomsRecord)
    measured = run.state(f"{group.key}:measure", MeasureRecord)
    if atoms is None or measured is None or state.svd_relative_error is None:
        raise GlobeError(f"{run.path}: the records of seeding {group.key} are missing")
    own = [row for row in metrics if row.family == group.key]
    codes = int(arrays.read(run.array(f"{group.key}/codes/count")).sum())
    return SweepRow(
        unit=group.key,
        point=point.name,
        options=point.values,
        method=point.seeding.method,
        proxies=proxies_for(point.seeding.method, point.seeding.proxies),
        relative_frobenius_error=state.relative_frobenius_error,
        seed_relative_frobenius_error=measured.errors.relative_frobenius_error,
        svd_equal_parameters_relative_error=state.svd_relative_error,
        parameter_ratio=group.sizes.parameter_ratio(codes),
        proxy_relative_error=atoms.proxy_relative_error,
        explained_variance=atoms.explained_variance,
        median_support=state.median_support,
        epoch=state.epoch,
        method_seconds=atoms.cost.seconds,
        seconds=state.seconds,
        bytes_read=state.bytes_read,
        passes=state.bytes_read / group.sizes.stored_bytes,
        peak_memory_bytes=_largest(own, "memory/peak_bytes"),
        price_bytes=_largest(own, "memory/price_bytes"),
    )


def _largest(rows: Sequence[MetricRow], name: str) -> int:
    return int(max(row.number(name) or 0 for row in rows))
