"""How a group of experts came to its error: what every epoch measured and what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from globe_stream.engine.metrics import MACHINE_STAGE, MetricRow


@dataclass(frozen=True)
class MachineRates:
    """What the machine's float32 product and disk reached when a command began; None: unknown."""

    operations_per_second: float | None = None
    bytes_per_second: float | None = None


@dataclass(frozen=True)
class EpochPoint:
    """One epoch, seeding being epoch 0; what no row says is None.

    `passes`, `seconds` and `operations` are all that the group took so far; the rates are those of
    this epoch, and `machine` those of the command that made it.
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
    machine: MachineRates = MachineRates()


@dataclass(frozen=True)
class MemoryPoint:
    """Memory of the process at one moment, in bytes, and what the stage was priced at, if known."""

    seconds: float  # since the first row
    rss: int | None
    peak: int | None
    price: int | None


@dataclass(frozen=True)
class StageRate:
    """What the steps of one kind computed and read a second, all groups together."""

    stage: str
    operations_per_second: float | None
    bytes_per_second: float | None


def history(rows: Sequence[MetricRow], key: str) -> tuple[EpochPoint, ...]:
    """The epochs of the group `key`; one that was logged twice, by a resumed run, counts once.

    Seeding's passes are its rows that read experts. Operations are those of epochs, which are by
    far the most, as the commands counted them.
    """
    own = [row for row in rows if row.family == key]
    seeding = [row for row in own if row.stage.startswith("seed/")]
    seconds = sum(row.number("time/seconds") or 0.0 for row in seeding)
    passes = sum(1 for row in seeding if row.number("io/bytes_read"))
    found = [_seed_point(row, passes, seconds) for row in seeding if _error(row) is not None][-1:]
    operations = 0.0
    measured = [row for row in rows if row.stage == MACHINE_STAGE]
    epochs = {row.epoch: row for row in own if row.epoch is not None and _error(row) is not None}
    for number, row in enumerate((epochs[epoch] for epoch in sorted(epochs)), start=1):
        spent = row.number("time/step_seconds") or row.number("time/seconds") or 0.0
        seconds += spent
        operations += row.number("compute/operations") or 0.0
        machine = machine_rates(measured, row.time)
        found.append(_epoch_point(row, passes + number, seconds, operations, machine))
    return tuple(found)


def machine_rates(rows: Sequence[MetricRow], time: float) -> MachineRates:
    """The rates that were measured last before `time`."""
    before = [row for row in rows if row.stage == MACHINE_STAGE and row.time <= time]
    if not before:
        return MachineRates()
    last = before[-1]
    return MachineRates(
        last.number("machine/operations_per_second"), last.number("machine/bytes_per_second")
    )


def stage_rates(rows: Sequence[MetricRow]) -> tuple[StageRate, ...]:
    """By kind of step, in the order in which they were made; epochs of the warm-up apart.

    Only steps of which it is known what they compute.
    """
    kinds: dict[str, list[MetricRow]] = {}
    for row in rows:
        if row.number("compute/operations") is not None:
            kinds.setdefault(_kind(row), []).append(row)
    return tuple(
        StageRate(
            kind,
            _rate(own, "compute/operations", "compute/operations_per_second"),
            _rate(own, "io/bytes_read", "io/bytes_per_second"),
        )
        for kind, own in kinds.items()
    )


def _kind(row: MetricRow) -> str:
    if row.epoch is None:
        return row.stage
    return "epoch of the warm-up" if row.number("schedule/warmup") else "epoch"


def _rate(rows: Sequence[MetricRow], amount: str, rate: str) -> float | None:
    """Sum of `amount` over the sum of the seconds that go with it; None where there is none."""
    known = [(row.number(amount) or 0.0, row.number(rate) or 0.0) for row in rows]
    counted = [(done, speed) for done, speed in known if done and speed]
    if not counted:
        return None
    return sum(done for done, _ in counted) / sum(done / speed for done, speed in counted)


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
    row: MetricRow, passes: int, seconds: float, operations: float, machine: MachineRates
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
        operations_per_second=row.number("compute/operations_per_second"),
        machine=machine,
    )


def _error(row: MetricRow) -> float | None:
    return row.number("recon/relative_frobenius_error")


def _bytes(row: MetricRow, name: str) -> int | None:
    value = row.number(name)
    return None if value is None else int(value)
