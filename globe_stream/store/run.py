"""A run directory: a ledger, Zarr arrays, metrics, and one atomic way to change them.

`Run.commit` stages new arrays, flushes them, writes one ledger row that says where each of
them belongs and what the new state is, and only then moves them into place. A crash before the row
leaves the old state; a crash after it is rolled forward when the run is opened next.
Source: docs/design.md, section Run directory.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from globe_stream.errors import GlobeError, InputError, option
from globe_stream.io import files
from globe_stream.io.closing import Closing
from globe_stream.io.records import Json, Record
from globe_stream.io.system_errors import explained
from globe_stream.io.world import ALONE, World
from globe_stream.store import arrays
from globe_stream.store.ledger import LEDGER, Ledger, first_row
from globe_stream.store.lock import LOCK_FILES, RunLock
from globe_stream.store.rows import Applied, Commit, Created, recorded_arrays
from globe_stream.store.zarr_array import METADATA, make_group

FORMAT = 3
STORE = "run.zarr"
STAGING = "staging.partial"
TRASH = "trash.partial"
SPILL = "spill.partial"

State = TypeVar("State", bound=Record)


def _nothing() -> dict[str, Record]:
    return {}


class Run(Closing):
    """One run directory, opened for reading or, under its lock, for writing."""

    def __init__(self, path: Path, *, writable: bool, world: World = ALONE) -> None:
        """Open the run at `path`; of several processes, the leading one locks and writes it.

        The others see the same ledger: they call `commit` with it, which tells them of the row.
        """
        self.path = path
        self.world = world
        self.beside: Callable[[], Mapping[str, Record]] = _nothing
        """States that every commit records beside its own, as they are at that moment."""
        self._lock: RunLock | None = None
        try:
            if world.leads:
                self._open(writable)
            if writable:
                world.meet()
            if not world.leads:
                self._open(False)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path, header: Record, world: World = ALONE) -> "Run":
        """Make `path` a new run whose first ledger row carries `header`.

        The row comes first: a crash before it leaves no run and nothing to clear away.
        """
        if world.leads:
            with explained(path, "making a run directory"):
                path.mkdir(parents=True, exist_ok=True)
                with RunLock(path):
                    _ledger(path, writable=True).append(Created(FORMAT, header.to_json()))
                    files.sync_tree(path)
        return cls(path, writable=True, world=world)

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether `path` holds a run: a ledger with at least one complete line."""
        ledger = path / LEDGER
        return ledger.exists() and b"\n" in ledger.read_bytes()

    @staticmethod
    def lost_its_record(path: Path) -> bool:
        """Whether `path` holds a run's arrays beside a ledger that has not one complete line."""
        known = (path / "ledger.jsonl").exists() and (path / STORE).is_dir()
        return known and not Run.exists(path)

    @staticmethod
    def erase(path: Path) -> None:
        """Delete the run at `path`, its record last, even if that is damaged.

        Raises InputError when another process holds it.
        """
        with RunLock(path):
            for child in path.iterdir():
                if child.name not in (*LOCK_FILES, LEDGER):
                    files.remove(child)
            files.remove(path / LEDGER)

    @property
    def header(self) -> Json:
        """What the run was created with, as JSON; `factorization.records.run_header` reads it."""
        return self._created.header

    @property
    def format(self) -> int:
        """The number of the run format that the directory is written in."""
        return self._created.format

    @property
    def commits(self) -> tuple[Commit, ...]:
        """Every commit so far, oldest first."""
        return tuple(row for row in self.ledger.rows if isinstance(row, Commit))

    def state(self, key: str, kind: type[State]) -> State | None:
        """The state of type `kind` that the last commit under `key` recorded, or None.

        Raises InputError when what was recorded is not of that type.
        """
        for commit in reversed(self.commits):
            if key in commit.states:
                state = commit.states[key]
                if state is None:
                    return None
                return kind.from_json(state, f"{self.path}/ledger.jsonl: state {key!r}")
        return None

    def array(self, name: str) -> Path:
        """Where the array `name` (such as "up/bank") lives."""
        return self.path / STORE / name

    def has(self, name: str) -> bool:
        """Whether the array `name` is in place."""
        return (self.array(name) / METADATA).exists()

    def spill(self, name: str) -> Path:
        """A path for data that only this run's current stage needs; kept until `clear_spill`.

        Every process has its own.
        """
        folder = self._spill_folder
        folder.mkdir(exist_ok=True)
        return folder / name

    def clear_spill(self) -> None:
        """Delete every spill file of this process."""
        files.remove(self._spill_folder)

    @property
    def _spill_folder(self) -> Path:
        rank = self.world.rank
        return self.path / (SPILL if self.world.leads else f"rank-{rank:03d}.{SPILL}")

    def commit(
        self,
        states: Mapping[str, Record | None],
        put: Mapping[str, arrays.Storable] | None = None,
        *,
        own: Mapping[str, arrays.Storable] | None = None,
        move: Sequence[tuple[str, str]] = (),
        drop: Sequence[str] = (),
    ) -> None:
        """Atomically replace `states` and the arrays `put`, after moving and dropping others.

        `move` renames arrays or groups (old, new) before `put` takes effect. Of several processes,
        the leading one says what is recorded and writes `put`; `own` are arrays that each of them
        writes for itself, under names that no other uses. Raises InputError when the disk is full;
        the run is then as it was before.
        """
        staged = {**(put or {}), **(own or {})} if self.world.leads else dict(own or {})
        self._require_free(staged)
        sequence = len(self.ledger.rows)
        staging = self.path / STAGING / str(sequence)
        with explained(self.path, "writing the run's state"):
            names = self._stage(staging, staged)
            changed = {**self.beside(), **states}
            commit = Commit(
                sequence,
                {key: None if state is None else state.to_json() for key, state in changed.items()},
                names,
                tuple(move),
                tuple(drop),
            )
            if self.world.leads:
                self.ledger.append(commit)
                self._apply(commit)
        for row in (self.world.of_first(commit), Applied(sequence)):
            if not self.world.leads:
                self.ledger.rows.append(row)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()

    def _open(self, writable: bool) -> None:
        if not (self.path / "ledger.jsonl").exists():
            reason = "no ledger.jsonl" if self.path.exists() else "no such folder"
            raise InputError(
                f"{self.path}: not a run directory ({reason}). "
                "Give one that `globe-stream seed` made"
            )
        self._lock = RunLock(self.path) if writable else None
        _require_format(self.path)
        self.ledger = _ledger(self.path, writable=writable)
        created = self.ledger.rows[0]
        if not isinstance(created, Created):
            raise GlobeError(f"{self.path}/ledger.jsonl: begins with no header; seed it anew")
        self._created = created
        if writable:
            self._recover()
            self._require_arrays()

    def _require_arrays(self) -> None:
        """Raise GlobeError unless every array that the ledger names is in place."""
        missing = sorted(name for name in recorded_arrays(self.commits) if not self.has(name))
        if missing:
            more = f", and {len(missing) - 1} more like it" if len(missing) > 1 else ""
            raise GlobeError(
                f"{self.path}: the array {missing[0]} is missing{more}. "
                f"Restore the run directory or start over with {option('fresh')}"
            )

    def _require_free(self, put: Mapping[str, arrays.Storable]) -> None:
        needed = sum(arrays.nbytes(source) for source in put.values())
        if needed:
            files.require_free(self.path, needed, "the run's state")

    def _stage(self, staging: Path, put: Mapping[str, arrays.Storable]) -> tuple[str, ...]:
        """Write `put` below `staging`; the names of what all processes wrote, ascending."""
        try:
            if self.world.leads:
                files.remove(staging)
                staging.mkdir(parents=True)
                _write_below(staging, put)
            names = self.world.gather(sorted(put))
            if any(names[1:]):
                if not self.world.leads:
                    _write_below(staging, put)
                self.world.meet()
        except BaseException:
            if self.world.leads:
                files.remove(staging)
            raise
        return tuple(sorted(name for own in names for name in own))

    def _recover(self) -> None:
        """Finish a commit that a crash interrupted, then sweep what was never committed."""
        if not (self.path / STORE / METADATA).exists():
            make_group(self.path / STORE)
            files.sync_tree(self.path / STORE)
            files.sync_parents(self.path / STORE, self.path)
        done = {row.sequence for row in self.ledger.rows if isinstance(row, Applied)}
        if self.commits and self.commits[-1].sequence not in done:
            self._apply(self.commits[-1])
        for leftover in (STAGING, TRASH):
            files.remove(self.path / leftover)
        for folder in self.path.glob(f"rank-*.{SPILL}"):  # of more processes than there are now
            if int(folder.name.removeprefix("rank-").partition(".")[0]) >= self.world.size:
                files.remove(folder)
        # A group that was being made when the process was killed.
        for torn in (self.path / STORE).rglob("*.partial"):
            files.remove(torn)

    def _apply(self, commit: Commit) -> None:
        """Carry out the moves of `commit`; safe to repeat after a crash at any point."""
        staging = self.path / STAGING / str(commit.sequence)
        trash = self.path / TRASH / str(commit.sequence)
        trash.mkdir(parents=True, exist_ok=True)
        for old, new in commit.move:
            if not (trash / "moved" / old).exists():
                if self.array(old).exists():
                    self._rename(self.array(old), self.array(new), trash / "replaced" / new)
                self._mark(trash / "moved" / old)
        for name in commit.drop:
            if self.array(name).exists():
                self._rename(self.array(name), trash / "dropped" / name, None)
        for name in commit.put:
            if (staging / name).exists():
                self._rename(staging / name, self.array(name), trash / "put" / name)
        self.ledger.append(Applied(commit.sequence))
        for emptied in (STAGING, TRASH):
            files.remove(self.path / emptied)

    def _rename(self, source: Path, target: Path, replaced: Path | None) -> None:
        self._ensure_groups(target)
        if replaced is not None and target.exists():
            replaced.parent.mkdir(parents=True, exist_ok=True)
            target.rename(replaced)
        os.rename(source, target)
        files.sync_parents(target, self.path)
        files.sync_parents(source, self.path)

    def _ensure_groups(self, target: Path) -> None:
        """Make every ancestor of an array inside the store a Zarr group."""
        target.parent.mkdir(parents=True, exist_ok=True)
        store = self.path / STORE
        if not target.is_relative_to(store):
            return
        for parent in target.parents:
            if parent == store:
                return
            make_group(parent)

    def _mark(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        files.sync_parents(path, self.path)


def _write_below(folder: Path, put: Mapping[str, arrays.Storable]) -> None:
    """Flushes what it wrote alone: other processes may be writing beside it."""
    for name, source in put.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        arrays.write(target, source)
        files.sync_tree(target)
        files.sync_parents(target, folder)


def _ledger(path: Path, *, writable: bool) -> Ledger[Created | Commit | Applied]:
    advice = f"Restore the run directory or start over with {option('fresh')}"
    return Ledger(path, (Created, Commit, Applied), advice=advice, writable=writable)


def _require_format(path: Path) -> None:
    """Refuse a ledger without a row, and one whose first row names another run format."""
    row = first_row(path)
    if row is None:
        raise GlobeError(f"{path}/{LEDGER}: empty; seed again with {option('fresh')}")
    found = row.get("format") if isinstance(row, dict) else None
    if found is not None and found != FORMAT:
        raise InputError(
            f"{path}: written in run format {found}, this version reads {FORMAT}. "
            f"Use the version that made it, or start over with {option('fresh')}"
        )
