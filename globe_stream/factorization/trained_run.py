"""A run made ready for export: its groups with bank, codes and normalisation, and its source."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from globe_stream.checkpoint.custom_layout import rule_of
from globe_stream.checkpoint.experts import key_of, upright
from globe_stream.checkpoint.fingerprint import CheckpointFingerprint
from globe_stream.checkpoint.index import ExpertIndex, Selection, open_index
from globe_stream.errors import InputError
from globe_stream.factorization.fitted_group import FittedGroup, read_codes
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.records import (
    GroupRecord,
    GroupState,
    RunHeader,
    require_source,
    run_header,
    seeded_state,
)
from globe_stream.io.closing import Closing
from globe_stream.store import arrays, digests
from globe_stream.store.run import Run


@dataclass(frozen=True)
class TrainedRun(Closing):
    """A run held under its lock, the checkpoint it was made from, and its groups."""

    run: Run
    header: RunHeader
    index: ExpertIndex
    groups: tuple[FittedGroup, ...]

    def identity(self) -> str:
        """A digest of everything an export's bytes depend on, options aside."""
        states = [
            [GroupRecord.of(fitted.group).to_json(), fitted.state.to_json()]
            for fitted in self.groups
        ]
        commits = [
            commit.sequence
            for commit in self.run.commits
            if any(fitted.group.key in commit.states for fitted in self.groups)
        ]
        source = self.index.fingerprint().to_json()
        text = json.dumps([source, states, commits[-1:]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def close(self) -> None:
        """Let go of the run."""
        self.run.close()


def open_trained_run(
    directory: Path, *, model: str | None = None, trained: bool = True
) -> TrainedRun:
    """Open the run in `directory`, locked, and check that its checkpoint is still the same.

    `model` says where the checkpoint is now, if it moved. `trained` demands at least one epoch of
    training. Raises InputError when the run is missing, held by another process or not trained,
    or when the checkpoint changed.
    """
    run = Run(directory, writable=True)
    try:
        header = run_header(run)
        states = _ready_states(run, header, trained)
        index = _open_checked(run, header, model)
        groups = tuple(_fitted(run, index, record, states[record.key]) for record in header.groups)
        return TrainedRun(run, header, index, groups)
    except BaseException:
        run.close()
        raise


def _ready_states(run: Run, header: RunHeader, trained: bool) -> dict[str, GroupState]:
    """The state of every group; InputError unless all are seeded, or `trained`."""
    states = {}
    for record in header.groups:
        state = seeded_state(run, record.key)
        if trained and state.stage == "seeded":
            raise InputError(
                f"{run.path}: {record.key} is seeded but not trained. "
                f"Run `globe-stream train {run.path}` first"
            )
        states[record.key] = state
    return states


def _open_checked(run: Run, header: RunHeader, model: str | None) -> ExpertIndex:
    if model is None:
        require_source(run, header)
    name, revision = model or header.model, header.revision
    rows = [arrays.read(run.array(f"{record.key}/experts")) for record in header.groups]
    text = header.config.selection.get("layout")
    rule = rule_of(text) if isinstance(text, str) else None
    index = open_index(name, revision, rule=rule)
    last = max(expert.layer for members in index.experts.values() for expert in members)
    if max(int(row[:, 0].max()) for row in rows) > last:
        index = open_index(name, revision, include_mtp=True, rule=rule)
    require_unchanged(header.fingerprint, index, name)
    if any(row[:, 2].any() for row in rows):
        index = index.select(Selection(families=tuple(index.experts), include_shared=True))
    return index


def require_unchanged(recorded: CheckpointFingerprint, index: ExpertIndex, name: str) -> None:
    """Raise InputError, naming the first difference, unless `index` is what was recorded."""
    found = index.fingerprint()
    if found == recorded:
        return
    old, new = recorded.files, found.files
    changed = sorted(file for file in {*old, *new} if old.get(file) != new.get(file))
    what = (
        f"{changed[0]} is not the file it was"
        if changed
        else f"the revision is {found.revision}, it was {recorded.revision}"
    )
    raise InputError(
        f"{name}: changed since the run was made: {what}. Restore the checkpoint, "
        "or seed a new run from it"
    )


def _fitted(run: Run, index: ExpertIndex, record: GroupRecord, state: GroupState) -> FittedGroup:
    by_key = {key_of(expert): expert for expert in index.experts[record.family]}
    rows = arrays.read(run.array(f"{record.key}/experts")).tolist()
    experts = tuple(
        upright(by_key[record.family, layer, bool(shared), number])
        for layer, number, shared in rows
    )
    group = ExpertGroup(record.key, record.family, experts, record.rank, record.bases)
    return FittedGroup(
        group,
        state,
        read_codes(run, record.key),
        run.array(f"{group.key}/bank"),
        digests.recorded(run, group.key, [expert.member for expert in experts]),
    )
