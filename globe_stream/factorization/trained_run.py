"""A run made ready for export: its groups with bank, codes and normalisation, and its source."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from globe_stream.checkpoint.custom_layout import rule_of
from globe_stream.checkpoint.experts import ExpertMatrix, upright
from globe_stream.checkpoint.fingerprint import CheckpointFingerprint
from globe_stream.checkpoint.index import ExpertIndex, Selection, open_index
from globe_stream.errors import InputError
from globe_stream.factorization.activation import Activation
from globe_stream.factorization.error_sums import ErrorSums
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.normalization import Normalization
from globe_stream.factorization.records import (
    GroupRecord,
    GroupState,
    RunHeader,
    run_header,
    seeded_state,
)
from globe_stream.io.closing import Closing
from globe_stream.store import arrays, digests
from globe_stream.store.codes import unpack
from globe_stream.store.run import Run

Key = tuple[str, int, bool, int]


def key_of(expert: ExpertMatrix) -> Key:
    """What identifies an expert matrix across checkpoints of one layout."""
    return expert.family, expert.layer, expert.shared, expert.expert


@dataclass(frozen=True)
class PackedCodes:
    """Supports and values of N experts, expert after expert."""

    offsets: Tensor  # (N + 1,) int64
    indices: Tensor  # (nnz,) int32
    values: Tensor  # (nnz,) float32

    def of(self, position: int) -> tuple[Tensor, Tensor]:
        """Atoms and values of one expert."""
        start, stop = int(self.offsets[position]), int(self.offsets[position + 1])
        return self.indices[start:stop], self.values[start:stop]

    def moment(self, bases: int) -> Tensor:
        """sum_i alpha_i alpha_i^T (m, m) float32 over all experts, with m = `bases`."""
        dense = unpack(self.offsets.diff(), self.indices, self.values, bases)
        return dense.T @ dense


@dataclass(frozen=True)
class FittedGroup:
    """One group of a run and everything its reconstruction needs.

    W_hat_i = scale A_i phi(gamma sum_j codes_ij B_j) + mean, with A_i refitted to the original.
    """

    group: ExpertGroup
    state: GroupState
    codes: PackedCodes
    bank: Path
    digests: Tensor | None = None

    def expected(self, positions: Sequence[int]) -> Tensor | None:
        """Digests (len(positions), 16) that the experts had when the run was seeded."""
        return None if self.digests is None else self.digests[list(positions)]

    @property
    def mean(self) -> float:
        """The recorded offset."""
        return self.state.mean

    @property
    def scale(self) -> float:
        """Standard deviation that the weights were divided by."""
        return self.state.scale

    @property
    def recorded_errors(self) -> ErrorSums:
        """Error and norm of the group's experts, as the run measured them."""
        return self.state.errors

    @property
    def normalization(self) -> Normalization:
        """The recorded mean and scale."""
        return Normalization(self.mean, self.scale)

    @property
    def activation(self) -> Activation:
        """phi and its gain."""
        state = self.state
        return Activation(state.activation, state.activation_lambda, state.gamma)

    @property
    def ridge(self) -> float:
        """Relative ridge of the adapters."""
        return self.state.lambda_a


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


def read_codes(run: Run, key: str) -> PackedCodes:
    """The codes of group `key`."""
    count, indices, values = (
        torch.from_numpy(arrays.read(run.array(f"{key}/codes/{name}")))
        for name in ("count", "indices", "values")
    )
    offsets = torch.zeros(len(count) + 1, dtype=torch.int64)
    offsets[1:] = count.long().cumsum(0)
    return PackedCodes(offsets, indices, values)
