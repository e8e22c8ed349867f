"""The ledger: an append-only record that alone decides what a run has completed.

Every row is one JSON object on one line, written and flushed to the disk before the call
returns. A line torn by a crash can only be the last one; it is cut off when the ledger is opened.
"""

import json
import os
from io import FileIO
from pathlib import Path
from typing import Any

from globe_stream.errors import GlobeError, option

Row = dict[str, Any]


class Ledger:
    """Rows of `path`, readable at once and extended durably one at a time."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self.rows, intact = _read(path)
        if writable and path.exists() and intact < path.stat().st_size:
            os.truncate(path, intact)

    def append(self, row: Row) -> None:
        """Add `row` and return once it is on the disk; one that does not fit leaves no trace."""
        line = json.dumps(row, sort_keys=True) + "\n"
        with self.path.open("ab", buffering=0) as file:
            intact = file.tell()
            try:
                _write_all(file, line.encode())
            except OSError:
                os.truncate(self.path, intact)
                raise
            os.fsync(file.fileno())
        self.rows.append(json.loads(line))


def _write_all(file: FileIO, data: bytes) -> None:
    done = 0
    while done < len(data):
        done += file.write(data[done:])


def _read(path: Path) -> tuple[list[Row], int]:
    """The complete rows of `path` and the byte at which the last of them ends."""
    rows: list[Row] = []
    intact = 0
    if not path.exists():
        return rows, intact
    data = path.read_bytes()
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise GlobeError(
                f"{path}: line {number} is not JSON ({error}): the run's record is damaged. "
                f"Start over with {option('fresh')}"
            ) from error
        intact += len(line)
    return rows, intact
