"""The ledger: an append-only record that alone decides what a run has completed.

Every row is one JSON object on one line, written and flushed to the disk before the call
returns. A line torn by a crash can only be the last one; it is cut off when the ledger is opened.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from globe_stream.errors import GlobeError, InputError, option
from globe_stream.io.records import Record


@dataclass(frozen=True)
class LedgerRow(Record):
    """Base of the rows of a ledger; `kind` says which they are."""

    kind: ClassVar[str]


Row = TypeVar("Row", bound=LedgerRow)


class Ledger(Generic[Row]):
    """Rows of `path`, readable at once and extended durably one at a time."""

    def __init__(self, path: Path, kinds: Sequence[type[Row]], *, writable: bool) -> None:
        """Read `path`, whose rows are of `kinds`.

        Raises GlobeError for a damaged line, InputError for a row of another form.
        """
        self.path = path
        lines, intact = read_lines(path)
        known = {kind.kind: kind for kind in kinds}
        self.rows = [_row(line, known, f"{path}: line {k}") for k, line in enumerate(lines, 1)]
        if writable and path.exists() and intact < path.stat().st_size:
            os.truncate(path, intact)

    def append(self, row: Row) -> None:
        """Add `row` and return once it is on the disk; one that does not fit leaves no trace."""
        line = json.dumps({"kind": row.kind, **row.to_json()}, sort_keys=True) + "\n"
        with self.path.open("ab", buffering=0) as file:
            intact = file.tell()
            try:
                _write_all(file, line.encode())
            except OSError:
                os.truncate(self.path, intact)
                raise
            os.fsync(file.fileno())
        self.rows.append(row)


def _row(line: Any, kinds: dict[str, type[Row]], where: str) -> Row:
    kind = kinds.get(line.pop("kind", "")) if isinstance(line, dict) else None
    if kind is None:
        raise InputError(
            f"{where}: a row of an unknown kind; known are {', '.join(kinds)}. "
            "Use the version of globe-stream that wrote it"
        )
    return kind.from_json(line, where)


def _write_all(file: FileIO, data: bytes) -> None:
    done = 0
    while done < len(data):
        done += file.write(data[done:])


def read_lines(path: Path) -> tuple[list[Any], int]:
    """The complete lines of `path`, parsed, and the byte at which the last of them ends."""
    rows: list[Any] = []
    intact = 0
    if not path.exists():
        return rows, intact
    data = path.read_bytes()
    *lines, _torn = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise GlobeError(
                f"{path}: line {number} is not JSON ({error}): the run's record is damaged. "
                f"Start over with {option('fresh')}"
            ) from error
        intact += len(line) + 1
    return rows, intact
