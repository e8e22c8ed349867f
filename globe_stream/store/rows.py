"""The rows of a run's ledger: created once, then commits, each marked once it is applied."""

from collections.abc import Iterable
from dataclasses import dataclass

from globe_stream.io.records import Json
from globe_stream.store.ledger import LedgerRow


@dataclass(frozen=True)
class Created(LedgerRow):
    """The first row: the run format, and the header that the run was made with."""

    kind = "created"

    format: int
    header: Json


@dataclass(frozen=True)
class Commit(LedgerRow):
    """New states and where arrays go: renames `move` (old, new), then `drop`, then `put`."""

    kind = "commit"

    sequence: int
    states: dict[str, Json | None]
    put: tuple[str, ...]
    move: tuple[tuple[str, str], ...]
    drop: tuple[str, ...]


@dataclass(frozen=True)
class Applied(LedgerRow):
    """The files of a commit are in place."""

    kind = "applied"

    sequence: int


def recorded_arrays(commits: Iterable[Commit]) -> frozenset[str]:
    """Names of the arrays that a run has once all of `commits` are carried out, in their order."""
    names: set[str] = set()
    for commit in commits:
        for old, new in commit.move:
            moved = _below(names, old)
            if moved:
                names = (names - moved - _below(names, new)) | {new + n[len(old) :] for n in moved}
        for name in commit.drop:
            names -= _below(names, name)
        names |= set(commit.put)
    return frozenset(names)


def _below(names: Iterable[str], group: str) -> set[str]:
    return {name for name in names if name == group or name.startswith(f"{group}/")}
