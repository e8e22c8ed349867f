"""The rows of a run's ledger: created once, then commits, each marked once it is applied."""

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
