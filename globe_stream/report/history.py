"""How a group of experts came to its error: what every epoch measured and what it cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from globe_stream.engine.metrics import MetricRow
from globe_stream.factorization.sizes import GroupSizes

Operations = Callable[[GroupSizes], float]
"""Floating-point operations of an epoch of a group of the given sizes."""


@dataclass(frozen=True)
class EpochPoint:
    """One epoch, seeding being epoch 0; what no row says is None.

    `passes`, `seconds` and `operations` are all that the group took so far; the rates are those of
    this epoch.
    """

    epoch: int
    error: float
    passes: int
    seconds: float
    operations: float
    activation_lambda: float | None
    beta: float | None
    temperature: float | None
    median_support: float | None
    target_support: float | None
    rejected: bool
    coherence: float | None
    bytes_per_second: float | None
    operations_per_second: float | None


@dataclass(frozen=True)
class MemoryPoint:
    """Memory of the process at one moment, in bytes, and what the stage was priced at, if known."""

    seconds: float  # since the first row
    rss: int | None
    peak: int | None
    price: int | None


def history(
    rows: Sequence[MetricRow], key: str, sizes: GroupSizes, operations: Operations
) -> tuple[EpochPoint, ...]:
    """The epochs of the group `key`; one that was logged twice, by a resumed run, counts once.

    Seeding's passes are its rows that read experts. Operations are those of epochs, which are by
    far the most.
    """
    own = [row for row in rows if row.family == key]
    seeding = [row for row in own if row.stage.startswith("seed/")]
    seconds = sum(row.number("time/seconds") or 0.0 for row in seeding)
    passes = sum(1 for row in seeding if row.number("io/bytes_read"))
    found = [_seed_point(row, passes, seconds) for row in seeding if _error(row) is not None][-1:]
    each = operations(sizes)
    epochs = {row.epoch: row for row in own if row.epoch is not None and _error(row) is not None}
    for number, row in enumerate((epochs[epoch] for epoch in sorted(epochs)), start=1):
        spent = row.number("time/step_seconds") or row.number("time/seconds") or 0.0
        seconds += spent
        found.append(_epoch_point(row, passes + number, seconds, number * each, each, spent))
    return tuple(found)


def memory_over_time(rows: Sequence[MetricRow]) -> tuple[MemoryPoint, ...]:
    """Every row that says something of memory, oldest first."""
    start = rows[0].time if rows else 0.0
    points = [
        MemoryPoint(
            row.time - start,
            _bytes(row, "memory/rss_bytes"),
            _bytes(row, "memory/peak_bytes"),
            _bytes(row, "memory/price_bytes"),
        )
        for row in rows
    ]
    return tuple(point for point in points if point.peak is not None)


def _seed_point(row: MetricRow, passes: int, seconds: float) -> EpochPoint:
    error = _error(row)
    assert error is not None
    return EpochPoint(
        0, error, passes, seconds, 0.0, None, None, None, None, None, False, None, None, None
    )


def _epoch_point(
    row: MetricRow, passes: int, seconds: float, operations: float, each: float, spent: float
) -> EpochPoint:
    error = _error(row)
    assert error is not None
    return EpochPoint(
        epoch=row.epoch or 0,
        error=error,
        passes=passes,
        seconds=seconds,
        operations=operations,
        activation_lambda=row.number("schedule/lambda"),
        beta=row.number("schedule/beta"),
        temperature=row.number("alpha/temperature"),
        median_support=row.number("alpha/median_support"),
        target_support=row.number("alpha/target_support"),
        rejected=bool(row.number("schedule/rejected")),
        coherence=row.number("bank/coherence_offdiag_max"),
        bytes_per_second=row.number("io/bytes_per_second"),
        operations_per_second=each / spent if spent else None,
    )


def _error(row: MetricRow) -> float | None:
    return row.number("recon/relative_frobenius_error")


def _bytes(row: MetricRow, name: str) -> int | None:
    value = row.number(name)
    return None if value is None else int(value)
