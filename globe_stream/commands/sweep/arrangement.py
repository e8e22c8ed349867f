"""Which points of a sweep share a warm start, proxies, statistics: the order that reads least."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

from pydantic import Field

from globe_stream.checkpoint.index import ExpertIndex
from globe_stream.commands.experts import GroupedExperts, Places, group_experts
from globe_stream.commands.sweep.grid import Point, digest
from globe_stream.config import SeedConfig, SelectionConfig
from globe_stream.errors import InputError
from globe_stream.factorization.svd_baseline import seed_passes
from globe_stream.io.records import Record
from globe_stream.seeding.methods import proxies_for
from globe_stream.seeding.sharing import SharingKeys, sharing_keys


@dataclass(frozen=True)
class WarmStart:
    """A warm start and the points that begin with it.

    `zero` are the experts that are left out because they are zero everywhere.
    """

    name: str
    seeding: SeedConfig
    experts: GroupedExperts
    keys: SharingKeys
    zero: Places
    points: tuple[Point, ...]

    @property
    def kind(self) -> str:
        """The proxies that it works on."""
        return proxies_for(self.seeding.method, self.seeding.proxies)


@dataclass(frozen=True)
class Preparation:
    """Statistics, proxies and Gram matrix that some warm starts begin with.

    `statistics` names the preparations that share a first pass over the experts; the first of them
    makes it, for all their `kinds` of proxies.
    """

    name: str
    statistics: str
    kinds: frozenset[str]
    starts: tuple[WarmStart, ...]


@dataclass(frozen=True)
class PassCount(Record):
    """Passes over the experts: of every point for itself, and with what is shared read once."""

    alone: int
    done: Annotated[int, Field(alias="read")]
    gram_matrices: int  # formed
    warm_starts: int  # seeded; points with equal options of seed share one
    saved: int  # of those alone, by sharing


def warm_starts(
    index: ExpertIndex, selection: SelectionConfig, points: Sequence[Point], zero: Places = ()
) -> list[WarmStart]:
    """The different warm starts of `points`; InputError names the point whose sizes do not fit."""
    members: dict[str, list[Point]] = {}
    for point in points:
        members.setdefault(digest([point.seeding.identity(), zero]), []).append(point)
    return [_warm_start(name, index, selection, own, zero) for name, own in members.items()]


def _warm_start(
    name: str,
    index: ExpertIndex,
    selection: SelectionConfig,
    points: Sequence[Point],
    zero: Places,
) -> WarmStart:
    seeding = points[0].seeding
    try:
        experts = group_experts(index, selection, seeding, zero)
        keys = sharing_keys(seeding, experts.groups)
    except InputError as error:
        raise error.at(f"point {points[0].name}") from error
    return WarmStart(name, seeding, experts, keys, zero, tuple(points))


def arrange(starts: Sequence[WarmStart]) -> list[Preparation]:
    """The preparations of `starts`, those that share statistics one after the other.

    Statistics hold the Procrustes mean of one rank; those that need none join any.
    """
    ranks: dict[str, object] = {}
    for start in starts:
        if start.keys.procrustes_rank is not None:
            ranks.setdefault(digest(start.keys.statistics), start.keys.procrustes_rank)

    def statistics(start: WarmStart) -> str:
        key = digest(start.keys.statistics)
        rank = start.keys.procrustes_rank or ranks.get(key)
        return digest([start.keys.statistics, rank, start.zero])

    def order(start: WarmStart) -> tuple[str, bool, str]:
        return statistics(start), start.keys.procrustes_rank is None, digest(start.keys.proxies)

    kinds: dict[str, set[str]] = {}
    for start in starts:
        kinds.setdefault(statistics(start), set()).add(start.kind)
    return [
        Preparation(digest(name), name[0], frozenset(kinds[name[0]]), tuple(own))
        for name, own in groupby(sorted(starts, key=order), key=order)
    ]


def count_passes(preparations: Sequence[Preparation]) -> PassCount:
    """Passes over the experts of all groups, epochs as many as are asked for."""
    alone = read = 0
    seen: set[str] = set()
    for preparation in preparations:
        for start in preparation.starts:
            seeding = max(seed_passes(group) for group in start.experts.groups)
            once = {
                f"statistics {preparation.statistics}": 1,
                f"proxies {preparation.name}": 1,
                f"measure {start.name}": 1,
                f"baseline {digest(start.keys.baseline)}": seeding - 3,
            }
            for point in start.points:
                epochs = 0 if point.training is None else point.training.epochs
                units = once if point.training is None else {**once, training_key(point): epochs}
                alone += sum(units.values())
                read += sum(count for key, count in units.items() if key not in seen)
                seen.update(units)
    starts = sum(len(one.starts) for one in preparations)
    return PassCount(alone, read, len(preparations), starts, saved=alone - read)


def training_key(point: Point) -> str:
    """Equal for points that compute the same."""
    training, seeding = point.training, point.seeding.identity()
    if training is None:
        return digest([seeding])
    return digest([seeding, training.identity(), training.epochs, training.patience])
