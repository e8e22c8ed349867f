"""Every byte of a run against its record: which arrays it must have, and what their chunks hold.

Memory: one chunk at a time.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from globe_stream.errors import GlobeError, option
from globe_stream.io.records import Record
from globe_stream.store import arrays
from globe_stream.store.rows import recorded_arrays
from globe_stream.store.run import STORE, Run

ProgressCall = Callable[[int, int, str], None]
"""Called with things read, things in all, and the name of the last."""


@dataclass(frozen=True)
class Verification(Record):
    """What was looked at, and one message for every problem; `ok` says that there is none.

    The messages have their options marked, as those of errors.
    """

    format: int
    path: str
    kind: str
    arrays: int
    files: int
    bytes: int
    ok: bool
    problems: tuple[str, ...]

    @classmethod
    def of(
        cls,
        path: Path,
        kind: str,
        problems: Sequence[str],
        *,
        arrays: int = 0,
        files: int = 0,
        size: int = 0,
    ) -> "Verification":
        """What was found at `path`, of so many arrays and files with `size` bytes."""
        return cls(1, str(path), kind, arrays, files, size, not problems, tuple(problems))


def verify_arrays(
    run: Run, shapes: Mapping[str, tuple[int, ...]], progress: ProgressCall | None = None
) -> Verification:
    """Read every array that `run` has or, by its ledger, must have, chunk by chunk.

    `shapes` are those that arrays must have, by name, as far as they are known.
    """
    found, expected = _present(run), recorded_arrays(run.commits)
    problems, size = [], 0
    names = sorted(found | expected)
    for number, name in enumerate(names, start=1):
        try:
            size += _read_all(run.array(name), shapes.get(name))
        except GlobeError as error:
            problems.append(error.message)
        if progress:
            progress(number, len(names), name)
    return Verification.of(run.path, "run", problems, arrays=len(names), size=size)


def _present(run: Run) -> frozenset[str]:
    store = run.path / STORE
    return frozenset(
        file.parent.relative_to(store).as_posix()
        for file in store.rglob("zarr.json")
        if _is_array(file)
    )


def _is_array(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_bytes())["node_type"] == "array")
    except (ValueError, KeyError, TypeError):
        return True  # damaged: opening it will say so


def _read_all(path: Path, shape: tuple[int, ...] | None) -> int:
    """Read every chunk, which checks it; returns the bytes of the array."""
    array = arrays.open_checked(path)
    if shape is not None and tuple(array.shape) != shape:
        raise GlobeError(
            f"{path}: has shape {tuple(array.shape)}, the run's sizes ask for {shape}. "
            f"Restore the run directory or start over with {option('fresh')}"
        )
    for index in array.indices:
        arrays.read_part(array, *array.region(index))
    return array.nbytes
