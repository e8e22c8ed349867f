"""`metrics.jsonl`, the record of a run, and the trackers that may mirror it.

Every row is one JSON object: `time, stage, family, epoch, step` and the metrics by their
published names. Source: docs/design.md, section Run directory.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Value = float | int | str | bool | None | list[Any] | dict[str, Any]
Row = dict[str, Any]


class Sink(Protocol):
    """Anything that takes metric rows."""

    def write(self, row: Row) -> None:
        """Take one row."""

    def close(self) -> None:
        """Flush and let go."""


class MetricsFile:
    """Appends rows to `path`; a line torn by a crash is cut off first."""

    def __init__(self, path: Path) -> None:
        _cut_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Append `row` and hand it to the system at once."""
        self._file.write(json.dumps(row) + "\n")
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
        values: Mapping[str, Value],
        *,
        epoch: int | None = None,
        step: int | None = None,
    ) -> None:
        """Record `values`; numbers that JSON cannot say (NaN, infinities) become null."""
        row: Row = {
            "time": time.time(),
            "stage": stage,
            "family": family,
            "epoch": epoch,
            "step": step,
        }
        row.update({name: finite(value) for name, value in values.items()})
        for sink in self._sinks:
            sink.write(row)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()


def finite(value: Any) -> Any:
    """`value` with every non-finite number replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def read_metrics(path: Path) -> list[Row]:
    """The complete rows of `path`, oldest first; none if it does not exist."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    intact = data.rfind(b"\n") + 1
    if intact < len(data):
        os.truncate(path, intact)
