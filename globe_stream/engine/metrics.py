"""`metrics.jsonl`, the record of a run, and the trackers that may mirror it.

Every row is one JSON object: `time, stage, family, epoch, step` and the metrics by their
published names. Source: docs/design.md, section Run directory.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from globe_stream.errors import InputError
from globe_stream.io.records import Json

METRICS_FILE = "metrics.jsonl"
MACHINE_STAGE = "machine"
"""Stage of the rows that say what the machine reaches, one a command."""

MetricValues = Mapping[str, JsonValue]
"""Metrics by their published names: numbers, and lists or mappings of numbers."""
STAMPS = ("time", "stage", "family", "epoch", "step")
"""What every row says besides its metrics."""


@dataclass(frozen=True)
class MetricRow:
    """One line of `metrics.jsonl`: when and where, and the metrics by their published names.

    `time` is in seconds since 1970; `family` names the group (a family, or one bank's layers of
    it), `epoch` and `step` where the row belongs to one.
    """

    time: float
    stage: str
    family: str
    epoch: int | None
    step: int | None
    values: MetricValues

    def number(self, name: str) -> float | None:
        """The metric `name` if the row has it and it is a number."""
        value = self.values.get(name)
        return value if isinstance(value, (int, float)) else None

    def to_json(self) -> Json:
        """As one flat object."""
        stamps: Json = {name: getattr(self, name) for name in STAMPS}
        return {**stamps, **self.values}

    @classmethod
    def from_json(cls, line: object, where: str) -> "MetricRow":
        """The row that `line`, parsed JSON found at `where`, describes; else InputError."""
        if not isinstance(line, dict) or any(name not in line for name in STAMPS):
            raise InputError(
                f"{where}: not a row of metrics: it needs {', '.join(STAMPS)}. Delete the line"
            )
        values = dict(line)
        stamps = {name: values.pop(name) for name in STAMPS}
        return cls(**stamps, values=values)


class Sink(Protocol):
    """Anything that takes metric rows."""

    def write(self, row: MetricRow) -> None:
        """Take one row."""

    def close(self) -> None:
        """Flush and let go."""


class MetricsFile:
    """Appends rows to `path`; a line torn by a crash is cut off first."""

    def __init__(self, path: Path) -> None:
        _cut_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: MetricRow) -> None:
        """Append `row` and hand it to the system at once."""
        self._file.write(json.dumps(row.to_json()) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Make the file durable."""
        os.fsync(self._file.fileno())
        self._file.close()


class Metrics:
    """Stamps rows and passes them to every sink."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def log(
        self,
        stage: str,
        family: str,
        values: MetricValues,
        *,
        epoch: int | None = None,
        step: int | None = None,
    ) -> None:
        """Record `values`; numbers that JSON cannot say (NaN, infinities) become null."""
        kept = {name: finite(value) for name, value in values.items()}
        row = MetricRow(time.time(), stage, family, epoch, step, kept)
        for sink in self._sinks:
            sink.write(row)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()


def finite(value: JsonValue) -> JsonValue:
    """`value` with every non-finite number replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value


def read_metrics(path: Path) -> list[MetricRow]:
    """The complete rows of `path`, oldest first; none if it does not exist.

    Raises InputError, which names the line, when one is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [
        _parsed(line, f"{path}: line {number}")
        for number, line in enumerate(lines, start=1)
        if line.endswith(b"\n")
    ]


def _parsed(line: bytes, where: str) -> MetricRow:
    try:
        return MetricRow.from_json(json.loads(line), where)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}). Delete the line") from error


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    intact = data.rfind(b"\n") + 1
    if intact < len(data):
        os.truncate(path, intact)
