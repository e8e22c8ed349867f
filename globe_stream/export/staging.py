"""An export in progress: what is finished, what is left, and the order of publication.

Everything is written below `OUT/.globe-export.partial` and moved into OUT when all of it is
complete, the file that makes it loadable last; so an unfinished export can never be mistaken for a
model. A finished file is recorded with its size and sha256, and not written again.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from globe_stream.errors import GlobeError, InputError, option
from globe_stream.export.content import require_content
from globe_stream.export.manifest import (
    MANIFEST,
    ExportManifest,
    FileRecord,
    read_manifest,
)
from globe_stream.export.written_errors import FileErrors
from globe_stream.io import files
from globe_stream.io.closing import Closing
from globe_stream.io.file_digest import FileDigest
from globe_stream.io.records import Json
from globe_stream.io.safetensors_writer import PlannedFile, SafetensorsWriter
from globe_stream.io.system_errors import explained
from globe_stream.store.ledger import LEDGER, Ledger, LedgerRow
from globe_stream.store.lock import RunLock

WORK = ".globe-export.partial"
_READY = "ready"


@dataclass(frozen=True)
class Begun(LedgerRow):
    """The first row: what the export is made of, and how."""

    kind = "begun"

    identity: Json


@dataclass(frozen=True)
class Finished(LedgerRow):
    """A file is complete."""

    kind = "file"

    name: str
    record: FileRecord


@dataclass(frozen=True)
class Gathered(LedgerRow):
    """What is gathered before any file is written: `steps` of it are in the file `name`."""

    kind = "gathered"

    steps: int
    name: str
    sha256: str


Row = Begun | Finished | Gathered


class ExportWork(Closing):
    """The state of one export into `out`; opened by `open_work`."""

    def __init__(self, out: Path, identity: Json, made: Sequence[Path] = ()) -> None:
        """Begin or continue; `made` are folders made for it, the deepest first."""
        self.out = out
        self._made = [*dict.fromkeys((out, *made))]
        self._folder = out / WORK
        (self._folder / _READY).mkdir(parents=True, exist_ok=True)
        self._lock = RunLock(self._folder)
        self._ledger = _ledger(self._folder, writable=True)
        if not self._ledger.rows:
            self._ledger.append(Begun(identity))
        for leftover in self._folder.glob("*.partial"):
            files.remove(leftover)

    def name_of(self, planned: PlannedFile) -> str:
        """The name of a planned file: where it is to lie below `out`."""
        return planned.path.relative_to(self.out).as_posix()

    def record(self, name: str) -> FileRecord | None:
        """What was finished under `name`, if anything."""
        return self.records().get(name)

    def finished(self, name: str) -> Path:
        """Where the finished file `name` is, published already or not."""
        ready = self._folder / _READY / name
        return ready if ready.exists() else self.out / name

    def remaining(self, planned: Mapping[str, int]) -> int:
        """Bytes still to be written of the files in `planned` (name to size)."""
        return sum(size for name, size in planned.items() if self.record(name) is None)

    @contextmanager
    def writing(
        self, planned: PlannedFile, errors: FileErrors | None = None
    ) -> Iterator[SafetensorsWriter]:
        """Write a planned file; on leaving it is finished and recorded with `errors`, as they are
        then.

        Raises InputError when the disk becomes full; the file is then to be written again.
        """
        name = self.name_of(planned)
        with self._filling(planned, name) as (file, partial):
            yield file
            file.finish()
            self._accept(partial, name, planned.size, errors)

    @contextmanager
    def gathering(self, planned: PlannedFile, steps: int) -> Iterator[SafetensorsWriter]:
        """Write what is gathered once `steps` of it are done, in place of what there is."""
        before, name = self.gathered(), f"{planned.path.name}-{steps}"
        with self._filling(planned, name) as (file, partial):
            yield file
            file.finish()
            digest = files.sha256_of(partial)
            os.rename(partial, self._folder / name)
            files.sync_parents(self._folder / name, self._folder)
            self._ledger.append(Gathered(steps, name, digest))
        if before is not None:
            files.remove(self._folder / before.name)

    def gathered(self) -> Gathered | None:
        """What was gathered so far."""
        rows = [row for row in self._ledger.rows if isinstance(row, Gathered)]
        return rows[-1] if rows else None

    def gathered_path(self) -> Path:
        """Where that lies."""
        row = self.gathered()
        assert row is not None
        return self._folder / row.name

    def check_gathered(self) -> None:
        """Raise GlobeError unless it is as it was written."""
        row, path = self.gathered(), self.gathered_path()
        if row is None or not path.is_file() or files.sha256_of(path) != row.sha256:
            raise GlobeError(
                f"{path}: is not the file that was written. Delete {self._folder} and export again"
            )

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder that is deleted when the block ends, or after a kill."""
        folder = self._partial("scratch")
        folder.mkdir()
        try:
            yield folder
        finally:
            files.remove(folder)

    @contextmanager
    def _filling(self, planned: PlannedFile, name: str) -> Iterator[tuple[SafetensorsWriter, Path]]:
        """A writer of the partial file of `name`, which is removed if the block fails."""
        partial = self._partial(name)
        with explained(self.out, f"writing {name}"):
            try:
                with SafetensorsWriter(planned, partial) as file:
                    yield file, partial
            except BaseException:
                files.remove(partial)
                raise

    def add(self, name: str, content: bytes) -> None:
        """Finish a small file with this content, in place of an earlier one of the name."""
        partial = self._partial(name)
        with explained(self.out, f"writing {name}"):
            partial.write_bytes(content)
            files.sync_tree(partial)
            self._accept(partial, name, len(content))

    def copy(self, source: Path) -> None:
        """Finish a copy of the file `source` under its own name, in place of an earlier one."""
        partial = self._partial(source.name)
        with explained(self.out, f"writing {source.name}"):
            shutil.copyfile(source, partial)
            files.sync_tree(partial)
            self._accept(partial, source.name, partial.stat().st_size)

    def records(self) -> dict[str, FileRecord]:
        """Every finished file by name."""
        found = {row.name: row.record for row in self._ledger.rows if isinstance(row, Finished)}
        return dict(sorted(found.items()))

    def publish(self, manifest: ExportManifest, last: str, expected: Collection[str] = ()) -> None:
        """Move everything into `out`, with `manifest` of it; the file `last` comes last.

        Raises GlobeError, before anything is moved, unless the index names the tensors of the files
        and they hold all those of `expected`.
        """
        tensors = require_content(self.out, self._finished_files(), expected)
        listed = {
            name: FileDigest(record.bytes, record.sha256)
            for name, record in self.records().items()
            if name != MANIFEST
        }
        content = replace(manifest, files=listed, tensors=tensors).to_json()
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        self.add(MANIFEST, text.encode())
        names = [name for name in self.records() if name != last]
        for name in [*names, last]:
            ready = self._ready(name)
            if ready.exists():
                (self.out / name).parent.mkdir(parents=True, exist_ok=True)
                os.rename(ready, self.out / name)
                files.sync_parents(self.out / name, self.out)
            elif not (self.out / name).exists():
                raise GlobeError(
                    f"{self.out}: the finished file {name} has disappeared. "
                    "Delete the folder and export again"
                )
        self.close()
        files.remove(self._folder)

    def close(self) -> None:
        """Let go of the lock; where nothing was finished, leave no trace."""
        self._lock.close()
        if self._folder.exists() and not self.records() and self.gathered() is None:
            files.remove(self._folder)
            files.remove_empty(self._made)

    def _partial(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '-')}.partial"

    def _ready(self, name: str) -> Path:
        return self._folder / _READY / name

    def _finished_files(self) -> dict[str, Path]:
        """Where every finished file lies now: still here, or published already."""
        places = {name: (self._ready(name), self.out / name) for name in self.records()}
        return {
            name: place
            for name, pair in places.items()
            for place in [next((one for one in pair if one.exists()), None)]
            if place is not None
        }

    def _accept(
        self, partial: Path, name: str, size: int, errors: FileErrors | None = None
    ) -> None:
        """Put the complete file `partial` with those that are ready, and record it."""
        ready, told, digest = self._ready(name), errors or FileErrors(), files.sha256_of(partial)
        ready.parent.mkdir(parents=True, exist_ok=True)
        os.rename(partial, ready)
        files.sync_parents(ready, self._folder)
        self._ledger.append(Finished(name, FileRecord(size, digest, told.squared, told.inputs)))


def open_work(out: Path, identity: Json, last: str) -> ExportWork | None:
    """The export `identity` into `out`, begun or continued; None when it is already complete.

    Raises InputError when `out` holds anything else, or another process works on it.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file. Choose another {option('out')}")
    unfinished = (out / WORK / LEDGER).exists()
    if unfinished:
        _require_same(out, _identity_of(out / WORK), identity, "an unfinished")
    elif (out / MANIFEST).exists() and (out / last).exists():
        _require_same(out, read_manifest(out).identity, identity, "another")
        return None
    elif out.exists() and any(child.name != WORK for child in out.iterdir()):
        raise InputError(
            f"{out}: exists and is not empty. Choose another {option('out')}, or empty it"
        )
    return _begin(out, identity)


def _begin(out: Path, identity: Json) -> ExportWork:
    """The work in `out`; where it cannot be begun, nothing made for it is left."""
    fresh = not (out / WORK).exists()
    made = files.make_folder(out)
    try:
        with explained(out, "writing the export"):
            return ExportWork(out, identity, made)
    except GlobeError:
        if fresh:
            files.remove(out / WORK)
        files.remove_empty(made)
        raise


def _identity_of(folder: Path) -> Json | None:
    rows = _ledger(folder, writable=False).rows
    return rows[0].identity if rows and isinstance(rows[0], Begun) else None


def _ledger(folder: Path, *, writable: bool) -> Ledger[Row]:
    advice = f"Delete {folder} and export again"
    return Ledger(folder, (Begun, Finished, Gathered), advice=advice, writable=writable)


def _require_same(out: Path, found: Json | None, wanted: Json, which: str) -> None:
    if found is None or found == wanted:
        return
    keys = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    what = (
        ", ".join(
            f"{key} {found.get(key)} instead of {wanted.get(key)}" for key in keys if key != "state"
        )
        or "the run had another state then"
    )
    raise InputError(
        f"{out}: holds {which} export that differs ({what}). "
        f"Choose another {option('out')}, or delete it"
    )
