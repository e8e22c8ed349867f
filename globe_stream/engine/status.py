"""Where a run stands: the document that `status`, `seed` and `train` end with."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from globe_stream.engine.device import Machine
from globe_stream.engine.records import (
    BUDGET,
    MACHINE,
    MEMORY,
    TRAINING,
    Budget,
    PeakMemory,
    TrainingOptions,
)
from globe_stream.factorization.error_sums import ErrorSums, pooled
from globe_stream.factorization.records import (
    GroupRecord,
    GroupState,
    RunHeader,
    global_error,
    group_state,
    run_header,
)
from globe_stream.io.records import Json, Record
from globe_stream.store import arrays
from globe_stream.store.run import Run

DOCUMENT_FORMAT = 1
STATES = ("seeding", "seeded", "training", "trained")

SeededGroup = tuple[GroupRecord, GroupState]


@dataclass(frozen=True)
class FamilySizes(Record):
    """A family's experts (p, d) and its `banks` of m = `bases` atoms (r, d)."""

    experts: int
    p: int
    d: int
    rank: int
    bases: int
    banks: int
    seeding_method: str


@dataclass(frozen=True)
class FamilySeeding(FamilySizes):
    """A family of which only `units_seeded` groups are seeded yet."""

    state: str
    units_seeded: int


@dataclass(frozen=True)
class FamilyStatus(FamilySizes):
    """A seeded family: its groups pooled, errors by squared norm."""

    parameter_ratio: float
    svd_equal_parameters_relative_error: float | None
    svd_sampled_experts: int
    explained_variance: float
    epoch: int
    passes: int
    relative_frobenius_error: float
    median_support: float
    temperature: float
    activation_lambda: float


@dataclass(frozen=True)
class StatusDocument(Record):
    """Where a run stands. `relative_frobenius_error` is that of all families together.

    `warnings` name what was asked of training and not reached, group by group; `zero_experts`
    (layer, number) are kept as they are because a matrix of theirs is zero everywhere.
    """

    format: int
    run: str
    state: str
    config: Json
    fingerprint: str
    peak_memory_bytes: int
    memory_budget_bytes: int
    bytes_read: int
    seconds: float
    machine: Machine | None
    relative_frobenius_error: float | None
    warnings: tuple[str, ...]
    zero_experts: tuple[tuple[int, int], ...]
    families: dict[str, FamilyStatus | FamilySeeding]


def run_status(run: Run) -> StatusDocument:
    """Where `run` stands; reads the ledger and the supports of the codes."""
    header = run_header(run)
    states = {group.key: group_state(run, group.key) for group in header.groups}
    seeded = [(group, state) for group in header.groups if (state := states[group.key])]
    training = run.state(TRAINING, TrainingOptions)
    peak, budget = run.state(MEMORY, PeakMemory), run.state(BUDGET, Budget)
    whole = len(seeded) == len(header.groups)
    return StatusDocument(
        format=DOCUMENT_FORMAT,
        run=str(run.path),
        state=_overall([state.stage for _, state in seeded]) if whole else "seeding",
        config={
            **header.config.to_json(),
            "model": header.model,
            "train": None if training is None else training.options,
        },
        fingerprint=fingerprint(run, header),
        peak_memory_bytes=peak.bytes if peak else 0,
        memory_budget_bytes=budget.bytes if budget else 0,
        bytes_read=sum(state.bytes_read for _, state in seeded),
        seconds=sum(state.seconds for _, state in seeded),
        machine=run.state(MACHINE, Machine),
        relative_frobenius_error=global_error(run),
        warnings=tuple(
            f"{group.key}: {line}" for group, state in seeded for line in state.warnings
        ),
        zero_experts=header.zero_experts,
        families={
            family: _family(run, header, family, seeded)
            for family in dict.fromkeys(group.family for group in header.groups)
        },
    )


def fingerprint(run: Run, header: RunHeader) -> str:
    """One hash of the inputs, the configuration and the format version."""
    kept = {
        "fingerprint": header.fingerprint.to_json(),
        "config": header.config.to_json(),
        "format": run.format,
        "revision": header.revision,
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _pooled_svd(states: Sequence[GroupState]) -> float | None:
    """relF of the equal-parameter SVD over several groups; None where one has none."""
    parts = [
        ErrorSums.from_relative(state.svd_relative_error, state.squared_norm)
        for state in states
        if state.svd_relative_error is not None
    ]
    return pooled(parts).relative_error if len(parts) == len(states) else None


def _overall(stages: Sequence[str]) -> str:
    """The state of the group that is furthest behind; training, once one group has begun."""
    least = min(stages, key=STATES.index)
    return "training" if least == "seeded" and set(stages) != {"seeded"} else least


def _family(
    run: Run, header: RunHeader, family: str, seeded: Sequence[SeededGroup]
) -> FamilyStatus | FamilySeeding:
    groups = [group for group in header.groups if group.family == family]
    states = [state for group, state in seeded if group.family == family]
    sizes = _sizes(groups, str(header.config.seed["method"]))
    if len(states) < len(groups):
        return FamilySeeding(**vars(sizes), state=STATES[0], units_seeded=len(states))
    supports = torch.cat(
        [
            torch.from_numpy(arrays.read(run.array(f"{group.key}/codes/count"))).double()
            for group in groups
        ]
    )
    return FamilyStatus(
        **vars(sizes),
        parameter_ratio=_parameter_ratio(groups, float(supports.sum())),
        svd_equal_parameters_relative_error=_pooled_svd(states),
        svd_sampled_experts=sum(state.svd_sampled for state in states),
        explained_variance=sum(state.explained_variance for state in states) / len(states),
        epoch=min(state.epoch for state in states),
        passes=min(state.passes for state in states),
        relative_frobenius_error=pooled(state.errors for state in states).relative_error,
        median_support=float(supports.quantile(0.5)),
        temperature=states[0].temperature,
        activation_lambda=min(state.activation_lambda for state in states),
    )


def _sizes(groups: Sequence[GroupRecord], method: str) -> FamilySizes:
    """Of a family's groups, which have atoms of one size."""
    first = groups[0]
    experts = sum(group.experts for group in groups)
    return FamilySizes(
        experts, first.p, first.d, first.rank, first.bases, len(groups), seeding_method=method
    )


def _parameter_ratio(groups: Sequence[GroupRecord], codes: float) -> float:
    """Parameters kept over parameters replaced, non-zero `codes` counted."""
    whole = sum(group.experts * group.p * group.d for group in groups)
    kept = sum(group.sizes.kept_parameters for group in groups)
    return (kept + codes) / whole
