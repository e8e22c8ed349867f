"""What a run records of its groups of experts: sizes in the header, a state for each group."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from globe_stream.checkpoint.fingerprint import CheckpointFingerprint
from globe_stream.errors import InputError, option
from globe_stream.factorization.error_sums import ErrorSums, pooled
from globe_stream.factorization.sizes import GroupSizes
from globe_stream.io.records import Json, Record
from globe_stream.store.run import Run

if TYPE_CHECKING:
    from globe_stream.factorization.groups import ExpertGroup

PROCRUSTES_MEAN = "seed/procrustes_mean"
"""The array of a group that holds the mean (r, d) of its aligned experts, if seeding made one."""

SOURCE = "source"

Stage = Literal["seeded", "training", "trained"]


@dataclass(frozen=True)
class GroupRecord(Record):
    """A group of experts and the size of its bank: N = `experts` of p x d, m atoms of r x d."""

    key: str
    family: str
    experts: int
    p: int
    d: int
    rank: int
    bases: int

    @classmethod
    def of(cls, group: "ExpertGroup") -> "GroupRecord":
        """The record of `group`."""
        sizes = group.sizes
        return cls(
            group.key, group.family, sizes.experts, sizes.p, sizes.d, sizes.rank, sizes.bases
        )

    @property
    def sizes(self) -> GroupSizes:
        """Its sizes, as of weights in 16 bits."""
        return GroupSizes(self.experts, self.p, self.d, self.rank, self.bases, itemsize=2)


@dataclass(frozen=True)
class RunConfig(Record):
    """The options that decide what a run computes, by name, and the kind of its device."""

    selection: Json
    seed: Json
    device: str


@dataclass(frozen=True)
class RunHeader(Record):
    """What a run is made from, and how.

    `zero_experts` (layer, number) were found to be zero everywhere: they are no part of the groups.
    """

    model: str
    model_type: str
    revision: str | None
    fingerprint: CheckpointFingerprint
    config: RunConfig
    groups: tuple[GroupRecord, ...]
    zero_experts: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class GroupState(Record):
    """Where one group stands: the saved bank and codes, and what it took to get there.

    `passes` are passes over the group's experts, seeding included. `relative_frobenius_error` is
    that of the saved bank and codes with refitted adapters, `squared_norm` the sum of ||W_i||_F^2
    that it is relative to, `svd_relative_error` that of the equal-parameter SVD, over the
    `svd_sampled` experts that it was computed for. Weights are normalized by `mean` and `scale`;
    the activation is applied to `gamma` times a mixture. `warnings` name what was asked of training
    and not reached.
    """

    stage: Stage
    epoch: int
    passes: int
    relative_frobenius_error: float
    squared_norm: float
    svd_relative_error: float | None
    svd_sampled: int
    mean: float
    scale: float
    lambda_a: float
    activation: str
    activation_lambda: float
    gamma: float
    temperature: float
    median_support: float
    explained_variance: float
    seeding_method: str
    bytes_read: int
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def errors(self) -> ErrorSums:
        """The sums of the saved state's errors."""
        return ErrorSums.from_relative(self.relative_frobenius_error, self.squared_norm)


@dataclass(frozen=True)
class Source(Record):
    """Where the checkpoint of a run is now, if it moved since the run was created."""

    model: str


def run_header(run: Run) -> RunHeader:
    """The header of `run`, with where its checkpoint is now; InputError if another version's."""
    header = RunHeader.from_json(run.header, f"{run.path}/ledger.jsonl: header")
    moved = run.state(SOURCE, Source)
    return header if moved is None else replace(header, model=moved.model)


def require_source(run: Run, header: RunHeader) -> None:
    """Raise InputError where the folder that `run` was seeded from is no longer there."""
    if header.revision is None and not Path(header.model).is_dir():
        raise InputError(
            f"{header.model}: no such folder, and {run.path} was seeded from it. Give the seed "
            f"command again, with the folder of now and {option('run')} {run.path}"
        )


def group_state(run: Run, key: str) -> GroupState | None:
    """Where the group `key` of `run` stands; None before it is seeded."""
    return run.state(key, GroupState)


def global_error(run: Run) -> float | None:
    """relF over all families of `run`, of their saved states; None until all are seeded."""
    states = [group_state(run, group.key) for group in run_header(run).groups]
    known = [state.errors for state in states if state is not None]
    return pooled(known).relative_error if known and len(known) == len(states) else None


def seeded_state(run: Run, key: str) -> GroupState:
    """Where the seeded group `key` of `run` stands; InputError before it is seeded."""
    state = group_state(run, key)
    if state is None:
        raise InputError(
            f"{run.path}: {key} is not seeded yet. "
            "Give the `globe-stream seed` command again to finish it"
        )
    return state
