"""Reconstruction errors by family, layer and expert, and those of the equal-parameter SVD."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.engine.progress import ProgressCall, Tally
from globe_stream.engine.status import FamilyStatus, run_status
from globe_stream.factorization.bank_cache import BankCache
from globe_stream.factorization.error_sums import ErrorSums, by_expert, by_layer, pooled_by
from globe_stream.factorization.fitted_group import FittedGroup
from globe_stream.factorization.reconstruction import BankApproximation
from globe_stream.factorization.svd_baseline import lost_energy
from globe_stream.factorization.trained_run import TrainedRun, open_trained_run
from globe_stream.io.records import Record
from globe_stream.memory.planner import plan_export, plan_svd
from globe_stream.store import arrays
from globe_stream.store.run import Run


@dataclass(frozen=True)
class ExpertError(Record):
    """relF of one expert."""

    layer: int
    expert: int
    shared: bool
    relative_error: float


@dataclass(frozen=True)
class FamilyError(Record):
    """relF of a family of which nothing finer is known."""

    relative_frobenius_error: float


@dataclass(frozen=True)
class FamilyErrors(Record):
    """relF of a family by layer and by expert, and of all together."""

    by_layer: dict[int, float]
    by_expert: tuple[ExpertError, ...]
    relative_frobenius_error: float


@dataclass(frozen=True)
class GroupErrors:
    """Squared Frobenius errors and norms (N,) float64 of a group's experts.

    `members` (N, 3) int are layer, expert and whether it is shared.
    """

    key: str
    family: str
    members: Tensor
    squared_errors: Tensor
    squared_norms: Tensor

    @property
    def sums(self) -> ErrorSums:
        """Over all experts."""
        return ErrorSums.of(self.squared_errors, self.squared_norms)

    def by_layer(self) -> dict[int, float]:
        """relF of each layer."""
        sums = by_layer(self.squared_errors, self.squared_norms, self.members[:, 0])
        return {layer: part.relative_error for layer, part in sums.items()}

    def by_expert(self) -> list[ExpertError]:
        """relF of each expert."""
        each = by_expert(self.squared_errors, self.squared_norms).tolist()
        return [
            ExpertError(layer, expert, bool(shared), value)
            for (layer, expert, shared), value in zip(self.members.tolist(), each, strict=True)
        ]


def recorded_errors(run: Path) -> list[GroupErrors]:
    """What the run recorded about its saved state; reads no weights."""
    with open_trained_run(run, trained=False) as source:
        return [
            _group_errors(source, fitted, _read(source, fitted, "errors"))
            for fitted in source.groups
        ]


def recorded_svd(run: Path) -> dict[str, FamilyError]:
    """relF of the equal-parameter truncated SVD by family, as the run recorded it.

    Empty unless it is known of every family. The run may have measured a sample of its experts.
    """
    found = {}
    for name, family in run_status(Run(run, writable=False)).families.items():
        svd = (
            family.svd_equal_parameters_relative_error if isinstance(family, FamilyStatus) else None
        )
        if svd is None:
            return {}
        found[name] = FamilyError(svd)
    return found


def measured_errors(
    run: Path, *, memory: int | None = None, progress: ProgressCall | None = None
) -> list[GroupErrors]:
    """Errors measured anew, W_hat - W element by element, in one streamed pass.

    `memory` is the peak resident bytes of the process; None means no limit.
    """
    with open_trained_run(run, trained=False) as source:
        plan = plan_export([fitted.group for fitted in source.groups], memory)
        tally = Tally(sum(len(fitted.group.experts) for fitted in source.groups), progress)
        found = []
        with BankCache(plan.resident) as banks:
            for fitted in source.groups:
                approximation = BankApproximation(fitted, banks.bank(fitted))

                error = partial(_rebuilding_error, approximation)
                squared = _each(source, fitted, plan.batch, error, tally)
                found.append(_group_errors(source, fitted, squared))
        return found


def svd_errors(
    run: Path, *, memory: int | None = None, progress: ProgressCall | None = None
) -> list[GroupErrors]:
    """Errors of every expert's truncated SVD with the group's parameters, in one streamed pass.

    The rank is `GroupSizes.svd_rank`. Source: docs/design.md, section Problem.
    """
    with open_trained_run(run, trained=False) as source:
        tally = Tally(sum(len(fitted.group.experts) for fitted in source.groups), progress)
        found = []
        for fitted in source.groups:
            plan = plan_svd(fitted.group.experts, memory)
            error = partial(_truncation_error, fitted.group.sizes.svd_rank)
            squared = _each(source, fitted, plan.batch, error, tally)
            found.append(_group_errors(source, fitted, squared))
        return found


def family_errors(groups: Sequence[GroupErrors]) -> dict[str, FamilyErrors]:
    """relF by family, layer and expert."""
    pooled = pooled_by((group.family, group.sums) for group in groups)
    return {family: _family(groups, family, sums) for family, sums in pooled.items()}


def _family(groups: Sequence[GroupErrors], family: str, sums: ErrorSums) -> FamilyErrors:
    own = [group for group in groups if group.family == family]
    return FamilyErrors(
        {layer: value for group in own for layer, value in group.by_layer().items()},
        tuple(one for group in own for one in group.by_expert()),
        sums.relative_error,
    )


def _each(
    source: TrainedRun,
    fitted: FittedGroup,
    batch: int,
    error: Callable[[int, Tensor], float],
    tally: Tally,
) -> Tensor:
    squared = torch.zeros(len(fitted.group.experts), dtype=torch.float64)
    source.index.fetch(fitted.group.experts)
    with ExpertReader(fitted.group.experts, batch, expected=fitted.digests) as reader:
        for part in reader.batches():
            for position, weights in zip(part.positions, part.weights, strict=True):
                squared[position] = error(position, weights)
            tally.advance(len(part.positions), fitted.group.key)
    return squared


def _rebuilding_error(approximation: BankApproximation, position: int, weights: Tensor) -> float:
    """||W_hat - W||_F^2 of expert `position`, whose `weights` (p, d) are overwritten."""
    original = weights.clone()
    return _square(approximation.replace(position, weights).sub_(original))


def _truncation_error(rank: int, position: int, weights: Tensor) -> float:
    """||W_hat - W||_F^2 of the truncated SVD of `weights` (p, d); `position` does not matter."""
    del position
    return lost_energy(weights, rank)


def _group_errors(source: TrainedRun, fitted: FittedGroup, squared: Tensor) -> GroupErrors:
    members = torch.tensor([[e.layer, e.expert, int(e.shared)] for e in fitted.group.experts])
    norms = _read(source, fitted, "norms")
    return GroupErrors(fitted.group.key, fitted.group.family, members, squared, norms)


def _read(source: TrainedRun, fitted: FittedGroup, name: str) -> Tensor:
    return torch.from_numpy(arrays.read(source.run.array(f"{fitted.group.key}/{name}")))


def _square(matrix: Tensor) -> float:
    return float(matrix.norm().double().square())
