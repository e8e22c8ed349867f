"""The ledger: an append-only record that alone decides what a run has completed.

Every row is one JSON object on one line, written and flushed to the disk before the call
returns. It begins with a checksum of itself and of all rows before it, so that a changed, lost or
moved row is noticed. How many rows there are stands in a second small file, the head, which is
replaced after each row: a ledger that ends before its head says so was cut off. A line torn by a
crash can only be the last one, and not one that the head knows; it is cut off when the ledger is
opened.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import xxhash

from globe_stream.errors import GlobeError, InputError
from globe_stream.io.files import PARTIAL
from globe_stream.io.records import Record

LEDGER, HEAD = "ledger.jsonl", "ledger.head"
LEDGER_FILES = (LEDGER, HEAD, HEAD + PARTIAL)
"""Names of the files that a ledger may have in its folder."""

_LINE = re.compile(rb'\{"check": "([0-9a-f]{16})", (.*)', re.DOTALL)
_START = "0" * 16


@dataclass(frozen=True)
class LedgerRow(Record):
    """Base of the rows of a ledger; `kind` says which they are."""

    kind: ClassVar[str]


Row = TypeVar("Row", bound=LedgerRow)


class Ledger(Generic[Row]):
    """Rows of `folder`/ledger.jsonl, readable at once and extended durably one at a time."""

    def __init__(
        self, folder: Path, kinds: Sequence[type[Row]], *, advice: str, writable: bool
    ) -> None:
        """Read the ledger in `folder`, whose rows are of `kinds`.

        Raises GlobeError, ending with `advice`, for a damaged line or a ledger that was cut off,
        InputError for a row of another form.
        """
        self.path, self._head = folder / LEDGER, folder / HEAD
        self._next_head = folder / (HEAD + PARTIAL)
        known = {kind.kind: kind for kind in kinds}
        confirmed = _read_head(self._head, advice)  # first: a writer may add a row meanwhile
        lines, checks, intact = _read_lines(self.path, advice)
        self._check = checks[-1] if checks else _START
        _require_all(self.path, checks, confirmed, advice)
        self.rows = [_row(line, known, f"{self.path}: line {k}") for k, line in enumerate(lines, 1)]
        if writable and self.path.exists():
            self._repair(intact)

    def _repair(self, intact: int) -> None:
        """Take away what a crash left of a row after the byte `intact`."""
        if intact < self.path.stat().st_size:
            os.truncate(self.path, intact)
        self._next_head.unlink(missing_ok=True)

    def append(self, row: Row) -> None:
        """Add `row` and return once it is on the disk; one that does not fit leaves no trace."""
        text = json.dumps({"kind": row.kind, **row.to_json()}, sort_keys=True)
        check = chained(self._check, text.encode())
        _write_durably(self._next_head, f"{len(self.rows) + 1} {check}\n".encode())
        with self.path.open("ab", buffering=0) as file:
            intact = file.tell()
            try:
                _write_all(file, f'{{"check": "{check}", {text[1:]}\n'.encode())
            except OSError:
                os.truncate(self.path, intact)
                raise
            os.fsync(file.fileno())
        self.rows.append(row)
        self._check = check
        os.replace(self._next_head, self._head)


def chained(before: str, text: bytes) -> str:
    """The checksum of a row that is `text`, after one whose checksum is `before`; 16 digits."""
    return xxhash.xxh3_64_hexdigest(before.encode() + text)


def first_row(folder: Path) -> Any:
    """The first row in `folder`, as far as it is JSON, unchecked; None if there is no row."""
    with (folder / LEDGER).open("rb") as file:
        line = file.readline()
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return {}


def _row(line: Any, kinds: dict[str, type[Row]], where: str) -> Row:
    kind = kinds.get(str(line.pop("kind", ""))) if isinstance(line, dict) else None
    if kind is None:
        raise InputError(
            f"{where}: a row of an unknown kind; known are {', '.join(kinds)}. "
            "Use the version of globe-stream that wrote it"
        )
    return kind.from_json(line, where)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        _write_all(file, content)
        os.fsync(file.fileno())


def _write_all(file: FileIO, data: bytes) -> None:
    done = 0
    while done < len(data):
        done += file.write(data[done:])


def _read_head(path: Path, advice: str) -> tuple[int, str]:
    """How many rows there must be at least, and the checksum of the last of them."""
    try:
        found = re.fullmatch(rb"(\d{1,18}) ([0-9a-f]{16})\n", path.read_bytes())
    except FileNotFoundError:
        return 0, _START
    if found is None:
        raise GlobeError(f"{path}: not a number of rows: the record is damaged. {advice}")
    return int(found[1]), found[2].decode()


def _require_all(path: Path, checks: list[str], confirmed: tuple[int, str], advice: str) -> None:
    """Raise GlobeError unless the rows with `checks` begin with those that are `confirmed`."""
    count, check = confirmed
    if count > len(checks):
        raise GlobeError(
            f"{path}: ends after {len(checks)} whole rows of {count}: the record is damaged. "
            f"{advice}"
        )
    if count and checks[count - 1] != check:
        raise GlobeError(
            f"{path}: line {count} is not the one that {HEAD} knows: the record is damaged. "
            f"{advice}"
        )


def _read_lines(path: Path, advice: str) -> tuple[list[Any], list[str], int]:
    """The complete lines of `path`, parsed, their checksums, and where the last of them ends."""
    rows: list[Any] = []
    checks: list[str] = []
    intact = 0
    if not path.exists():
        return rows, checks, intact
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        before = checks[-1] if checks else _START
        if match is None or match[1].decode() != chained(before, b"{" + match[2]):
            raise GlobeError(
                f"{path}: line {number} does not have its checksum: the record is damaged. {advice}"
            )
        rows.append(json.loads(b"{" + match[2]))
        checks.append(match[1].decode())
        intact += len(line) + 1
    return rows, checks, intact
