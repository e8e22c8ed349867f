"""Many groups in few lines: families pooled, and the highest of each kind of stage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from globe_stream.factorization.error_sums import ErrorSums, pooled
from globe_stream.report.data import Array, GroupData, StageMemory
from globe_stream.report.history import EpochPoint

MANY_GROUPS = 8
"""More groups than these are pooled by family."""
_MEDIANS = (
    "activation_lambda",
    "beta",
    "temperature",
    "median_support",
    "target_support",
    "coherence",
    "bytes_per_second",
    "operations_per_second",
)
MANY_STAGES = 12
"""More stages than these are pooled by kind."""


@dataclass(frozen=True)
class FamilyCurve:
    """relF of a family by epoch, and the lowest and highest of its groups; the epochs of all."""

    family: str
    epochs: tuple[int, ...]
    pooled: Array
    lowest: Array
    highest: Array
    svd_error: float | None


def pool_curves(groups: Sequence[GroupData]) -> list[FamilyCurve]:
    """One curve a family, over the epochs that every group of it has done."""
    families = dict.fromkeys(group.family for group in groups)
    return [_pool(name, [group for group in groups if group.family == name]) for name in families]


def _pool(family: str, groups: Sequence[GroupData]) -> FamilyCurve:
    curves = [dict(group.curve) for group in groups]
    epochs = tuple(sorted(set.intersection(*(set(curve) for curve in curves))))
    errors = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
    norms = [group.state.squared_norm for group in groups]
    known = [group.svd_error for group in groups if group.svd_error is not None]
    svd = _pooled(known, norms) if len(known) == len(groups) else None
    curve = np.array([_pooled(column, norms) for column in errors.T.tolist()])
    return FamilyCurve(family, epochs, curve, errors.min(axis=0), errors.max(axis=0), svd)


def _pooled(errors: Sequence[float], norms: Sequence[float]) -> float:
    """relF over all groups from those of each and their squared norms."""
    return pooled(map(ErrorSums.from_relative, errors, norms)).relative_error


def pool_histories(groups: Sequence[GroupData]) -> list[GroupData]:
    """One group a family, whose history is that of all its groups; the epochs of all.

    Errors are pooled, costs added up, other values medians.
    """
    families = dict.fromkeys(group.family for group in groups)
    return [_together([g for g in groups if g.family == family]) for family in families]


def _together(groups: Sequence[GroupData]) -> GroupData:
    if len(groups) == 1:
        return groups[0]
    by_epoch = [{point.epoch: point for point in group.history} for group in groups]
    epochs = sorted(set.intersection(*(set(points) for points in by_epoch)))
    norms = [group.state.squared_norm for group in groups]
    points = tuple(_point([points[epoch] for points in by_epoch], norms) for epoch in epochs)
    return replace(groups[0], key=groups[0].family, history=points)


def _point(points: Sequence[EpochPoint], norms: Sequence[float]) -> EpochPoint:
    medians = {name: _median([getattr(point, name) for point in points]) for name in _MEDIANS}
    first = replace(points[0], **medians)  # type: ignore[arg-type]
    return replace(
        first,
        error=_pooled([point.error for point in points], norms),
        seconds=sum(point.seconds for point in points),
        operations=sum(point.operations for point in points),
        rejected=any(point.rejected for point in points),
        machine=points[0].machine,
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def pool_stages(stages: Sequence[StageMemory]) -> list[StageMemory]:
    """The stages, or where they are many the one with the highest peak of each kind."""
    if len(stages) <= MANY_STAGES:
        return list(stages)
    highest: dict[str, StageMemory] = {}
    for one in stages:
        kind = one.stage.split(" ", 1)[-1]
        if kind not in highest or one.peak > highest[kind].peak:
            highest[kind] = StageMemory(kind, one.estimate_bytes, one.peak)
    return list(highest.values())


def spread(rows: Sequence[Array]) -> tuple[Array, Array, Array]:
    """Lowest, median and highest of `rows` at each index; shorter rows count while they last."""
    longest = max(len(row) for row in rows)
    grid = np.full((len(rows), longest), np.nan)
    for place, row in zip(grid, rows, strict=True):
        place[: len(row)] = row
    return np.nanmin(grid, axis=0), np.nanmedian(grid, axis=0), np.nanmax(grid, axis=0)
