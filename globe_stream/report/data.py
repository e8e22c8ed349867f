"""What a report shows, gathered from a run directory; nothing is computed from weights.

Memory: codes as supports, errors and spectra; no bank and no shard is read.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from globe_stream.engine.metrics import MetricRow, read_metrics
from globe_stream.engine.status import StatusDocument, run_status
from globe_stream.factorization.records import GroupRecord, GroupState, group_state, run_header
from globe_stream.report.history import (
    EpochPoint,
    MachineRates,
    MemoryPoint,
    StageRate,
    history,
    machine_rates,
    memory_over_time,
    stage_rates,
)
from globe_stream.store import arrays
from globe_stream.store.run import Run

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GroupData:
    """One group of experts.

    `errors` (N,) are relF by expert; `members` (N, 3) layer, expert, shared. `curve` is (epoch,
    relF), seeding being epoch 0; `popularity` (m,) counts the experts that use an atom;
    `eigenvalues` (N,) are those of the proxies' Gram matrix, largest first, if they were kept.
    """

    key: str
    family: str
    state: GroupState
    curve: tuple[tuple[int, float], ...]
    errors: Array
    members: Array
    supports: Array
    popularity: Array
    eigenvalues: Array | None
    svd_error: float | None
    history: tuple[EpochPoint, ...] = ()


@dataclass(frozen=True)
class StageMemory:
    """Price and measured peak of one stage, in bytes."""

    stage: str
    estimate_bytes: int
    peak: int


@dataclass(frozen=True)
class ReportData:
    """Everything the report needs."""

    status: StatusDocument
    groups: tuple[GroupData, ...]
    memory: tuple[StageMemory, ...] = field(default=())
    memory_points: tuple[MemoryPoint, ...] = field(default=())
    stage_rates: tuple[StageRate, ...] = field(default=())
    machine_rates: MachineRates = field(default=MachineRates())


def gather(path: Path) -> ReportData:
    """Read the run at `path`; InputError when it is no run, GlobeError when damaged."""
    run = Run(path, writable=False)
    rows = read_metrics(path / "metrics.jsonl")
    groups = tuple(
        _group(run, record, state, rows)
        for record in run_header(run).groups
        if (state := group_state(run, record.key)) is not None
    )
    return ReportData(
        run_status(run),
        groups,
        _memory(rows),
        memory_over_time(rows),
        stage_rates(rows),
        machine_rates(rows, math.inf),
    )


def _group(
    run: Run,
    record: GroupRecord,
    state: GroupState,
    rows: list[MetricRow],
) -> GroupData:
    key = record.key
    counts = arrays.read(run.array(f"{key}/codes/count"))
    indices = arrays.read(run.array(f"{key}/codes/indices"))
    squared = arrays.read(run.array(f"{key}/errors")) / arrays.read(run.array(f"{key}/norms"))
    spectrum = f"{key}/eigenvalues"
    return GroupData(
        key,
        record.family,
        state,
        _curve(rows, key),
        np.sqrt(squared),
        arrays.read(run.array(f"{key}/experts")),
        counts,
        np.bincount(indices, minlength=record.bases),
        arrays.read(run.array(spectrum)) if run.has(spectrum) else None,
        state.svd_relative_error,
        history(rows, key),
    )


def _curve(rows: list[MetricRow], key: str) -> tuple[tuple[int, float], ...]:
    """relF by epoch; an epoch that was logged twice, by a resumed run, counts once."""
    curve: dict[int, float] = {}
    for row in rows:
        error = row.number("recon/relative_frobenius_error")
        if row.family == key and error is not None:
            curve[row.epoch or 0] = error
    return tuple(sorted(curve.items()))


def _memory(rows: list[MetricRow]) -> tuple[StageMemory, ...]:
    stages: dict[str, StageMemory] = {}
    for row in rows:
        estimate_bytes, peak = row.number("memory/price_bytes"), row.number("memory/peak_bytes")
        if estimate_bytes and peak:
            name = f"{row.family} {row.stage.removesuffix('/memory')}"
            before = stages.get(name, StageMemory(name, 0, 0))
            stages[name] = StageMemory(
                name,
                max(int(estimate_bytes), before.estimate_bytes),
                max(int(peak), before.peak),
            )
    return tuple(stages.values())
