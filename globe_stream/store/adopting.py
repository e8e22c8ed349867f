"""Taking over what another run has of a group: its arrays as they are stored, and its states."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from globe_stream.io.records import Json, Record
from globe_stream.store.arrays import StoredCopy
from globe_stream.store.run import STORE, Run


@dataclass(frozen=True)
class Verbatim(Record):
    """A state as another run recorded it."""

    state: Json

    def to_json(self) -> Json:
        """The state itself."""
        return self.state


def adopt(run: Run, source: Run, group: str) -> None:
    """Give `run` all that `source` has of `group`, in one commit."""
    run.commit(
        {key: Verbatim(state) for key, state in recorded_states(source, group).items()},
        {name: StoredCopy(source.array(name)) for name in sorted(_arrays(source, group))},
    )


def recorded_states(run: Run, group: str) -> dict[str, Json]:
    """The last state under every key of `group`, without those that were taken back."""
    states: dict[str, Json | None] = {}
    for commit in run.commits:
        for key, state in commit.states.items():
            if key == group or key.startswith(f"{group}:"):
                states[key] = state
    return {key: state for key, state in states.items() if state is not None}


def _arrays(run: Run, group: str) -> Iterator[str]:
    """The names of the arrays of `group` that are in place."""
    store = run.path / STORE
    for record in run.array(group).rglob("zarr.json"):
        if json.loads(record.read_text())["node_type"] == "array":
            yield record.parent.relative_to(store).as_posix()
