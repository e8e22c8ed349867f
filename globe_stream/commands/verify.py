"""`verify`: every byte of a run, or of an export, against its record.

Memory: one chunk, or one piece of a file, at a time.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from globe_stream.commands.wording import worded
from globe_stream.engine.progress import ProgressCall
from globe_stream.errors import GlobeError, InputError, option
from globe_stream.export.staging import MANIFEST, WORK, ManifestFile, read_manifest
from globe_stream.factorization.records import group_state, run_header
from globe_stream.io.files import sha256_of
from globe_stream.store import arrays
from globe_stream.store.run import STORE, Run

PER_UNIT = ("bank", "codes/count", "codes/indices", "codes/values", "experts", "norms", "errors")
"""Arrays that every seeded unit has."""


@dataclass(frozen=True)
class Verification:
    """What was looked at, and one line for every problem; none means that all is well."""

    path: str
    kind: str
    arrays: int
    files: int
    bytes: int
    problems: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """For `verify --json`."""
        return {
            "format": 1,
            "path": self.path,
            "kind": self.kind,
            "arrays": self.arrays,
            "files": self.files,
            "bytes": self.bytes,
            "ok": not self.problems,
            "problems": list(self.problems),
        }


def verify(path: Path, *, progress: ProgressCall | None = None) -> Verification:
    """Read a run directory or an export in full; checksums, sizes and completeness.

    Raises InputError when `path` is neither.
    """
    if (path / "ledger.jsonl").exists():
        return verify_run(path, progress=progress)
    if (path / MANIFEST).exists() or (path / WORK).exists():
        return verify_export(path, progress=progress)
    said = "neither a run directory nor an export" if path.exists() else "does not exist"
    raise InputError(
        f"{path}: {said}. Give the {option('run')} of a seed or the {option('out')} of an export"
    )


def verify_run(path: Path, *, progress: ProgressCall | None = None) -> Verification:
    """Every array that the run at `path` has or should have, chunk by chunk."""
    run = Run(path, writable=False)
    found = {
        str(file.parent.relative_to(path / STORE))
        for file in (path / STORE).rglob("zarr.json")
        if _is_array(file)
    }
    expected = {
        f"{record.key}/{name}"
        for record in run_header(run).groups
        if group_state(run, record.key) is not None
        for name in PER_UNIT
    }
    problems, size = [], 0
    names = sorted(found | expected)
    for number, name in enumerate(names, start=1):
        try:
            size += _read_all(run.array(name))
        except GlobeError as error:
            problems.append(worded(error.message))
        if progress:
            progress(number, len(names), name)
    problems += _shapes(run, found)
    return Verification(str(path), "run", len(names), 0, size, tuple(problems))


def verify_export(path: Path, *, progress: ProgressCall | None = None) -> Verification:
    """Every file of the export at `path` against its recorded size and sha256."""
    if not (path / MANIFEST).exists():
        problem = f"{path}: the export is unfinished. Give the same export command again"
        return Verification(str(path), "export", 0, 0, 0, (problem,))
    manifest = read_manifest(path)
    problems: list[str] = []
    size = 0
    listed = sorted(manifest.files.items())
    for number, (name, record) in enumerate(listed, start=1):
        found = _file_problem(path / name, record)
        if found:
            problems.append(found)
        else:
            size += record.bytes
        if progress:
            progress(number, len(listed), name)
    if (path / WORK).exists():
        problems.append(
            f"{path}: the export was not published in full. Give the same export command again"
        )
    return Verification(str(path), manifest.kind, 0, len(listed), size, tuple(problems))


def _file_problem(file: Path, record: ManifestFile) -> str | None:
    if not file.is_file():
        return f"{file}: is missing. Export again to another folder"
    if file.stat().st_size != record.bytes:
        return (
            f"{file}: {file.stat().st_size:,} bytes, {record.bytes:,} were written. "
            "Export again to another folder"
        )
    if sha256_of(file) != record.sha256:
        return f"{file}: its content changed (sha256). Export again to another folder"
    return None


def _is_array(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text(encoding="utf-8"))["node_type"] == "array")
    except (ValueError, KeyError):
        return True  # damaged: opening it will say so


def _read_all(path: Path) -> int:
    """Read every chunk, which checks it; returns the bytes of the array."""
    array = arrays.open_checked(path)
    grid = (range(0, side, step) for side, step in zip(array.shape, array.chunks, strict=True))
    for corner in itertools.product(*grid):
        arrays.read_slice(
            array,
            tuple(
                slice(start, start + step) for start, step in zip(corner, array.chunks, strict=True)
            ),
        )
    return int(array.nbytes)


def _shapes(run: Run, found: set[str]) -> list[str]:
    """Arrays of a unit that do not fit its sizes."""
    problems = []
    for record in run_header(run).groups:
        key, n = record.key, record.experts
        wanted = {
            "bank": (record.bases, record.rank, record.d),
            "codes/count": (n,),
            "experts": (n, 3),
            "norms": (n,),
            "errors": (n,),
        }
        for name, shape in wanted.items():
            if f"{key}/{name}" not in found:
                continue
            try:
                actual = tuple(arrays.open_checked(run.array(f"{key}/{name}")).shape)
            except GlobeError:
                continue  # told already
            if actual != shape:
                problems.append(
                    f"{run.array(f'{key}/{name}')}: has shape {actual}, the run's "
                    f"sizes ask for {shape}. Restore the run directory"
                )
    return problems
