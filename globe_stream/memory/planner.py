"""Chooses batch and spilling for every stage of a unit, before any work.

Resident banks are tried before spilled ones, and large batches before small ones.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from itertools import product

from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.config import TrainConfig
from globe_stream.errors import option
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.memory import cost_model as budget
from globe_stream.memory.cost_model import BatchPlan, Stage, StagePlan

_MANY = 1024
_FEWER = f"choose a smaller {option('rank')} or {option('bases')}, or {option('bank_scope')} layer"

EstimateBytes = Callable[[BatchPlan], int]


def seed_stages(group: ExpertGroup, proxies: str, kinds: Collection[str] = ()) -> dict[str, Stage]:
    """Every seeding stage of `unit` by name.

    `kinds` are those that the statistics serve, when more than `proxies`.
    """
    estimates = _seed_estimates(group, proxies, kinds)
    small = _seed_estimates(_smallest(group), proxies, kinds)
    return {
        name: _stage(
            f"seed/{name} of {group.key}", group, estimate_bytes, small[name], name == "measure"
        )
        for name, estimate_bytes in estimates.items()
    }


def train_stage(group: ExpertGroup, config: TrainConfig) -> Stage:
    """The epochs of `unit`."""
    estimate_bytes, small = _train_bytes(group, config), _train_bytes(_smallest(group), config)
    return _stage(f"train of {group.key}", group, estimate_bytes, small, True)


def require(stages: Iterable[Stage], limit: int, base: int) -> None:
    """Raise InputError unless all of `stages` fit `limit`, naming the one that needs most."""
    budget.require(stages, limit, base, _FEWER)


def seed_plans(
    group: ExpertGroup, proxies: str, limit: int, base: int, kinds: Collection[str] = ()
) -> dict[str, StagePlan]:
    """A plan for every seeding stage of `unit`; InputError when they cannot all fit `limit`.

    `kinds` are those that the statistics serve, when more than `proxies`.
    """
    stages = seed_stages(group, proxies, kinds)
    require(stages.values(), limit, base)
    return {name: _plan(stage, limit, base) for name, stage in stages.items()}


def train_plan(group: ExpertGroup, config: TrainConfig, limit: int, base: int) -> StagePlan:
    """The plan of `unit`'s epochs; InputError when even spilled banks do not fit `limit`."""
    stage = train_stage(group, config)
    require([stage], limit, base)
    return _plan(stage, limit, base)


def _plan(stage: Stage, limit: int, base: int) -> StagePlan:
    return budget.choose(stage.name, stage.candidates, stage.estimate_bytes, limit, base, _FEWER)


def _stage(
    name: str, group: ExpertGroup, estimate_bytes: EstimateBytes, small: EstimateBytes, spill: bool
) -> Stage:
    smallest = min(map(small, _candidates(_smallest(group), small, spill=spill)))
    return Stage(name, _candidates(group, estimate_bytes, spill=spill), estimate_bytes, smallest)


def _smallest(group: ExpertGroup) -> ExpertGroup:
    """`unit` with the smallest bank: one atom of one row, for the experts of one layer."""
    first = group.experts[0].layer
    members = tuple(expert for expert in group.experts if expert.layer == first)
    return replace(group, experts=members, rank=1, bases=1)


def _seed_estimates(
    group: ExpertGroup, proxies: str, kinds: Collection[str]
) -> dict[str, EstimateBytes]:
    sizes, reader = group.sizes, _reader_bytes(group)
    itemsize = group.proxy_dtype.itemsize
    return {
        "statistics": lambda k: budget.statistics_bytes(sizes, k, reader, kinds or {proxies}),
        "proxies": lambda k: budget.proxies_bytes(sizes, k, reader, proxies, itemsize),
        "gram": lambda _: budget.gram_bytes(sizes, itemsize),
        "atoms": lambda _: budget.atoms_bytes(sizes, itemsize),
        "measure": lambda k: budget.measure_bytes(sizes, k, reader),
        "baseline": lambda k: budget.baseline_bytes(sizes, k, reader),
    }


def _train_bytes(group: ExpertGroup, config: TrainConfig) -> EstimateBytes:
    sizes, reader = group.sizes, _reader_bytes(group)

    def estimate_bytes(batch_plan: BatchPlan) -> int:
        return budget.train_bytes(
            sizes,
            batch_plan,
            reader,
            warmup=config.warmup_epochs > 0,
            curved=config.activation != "none",
        )

    return estimate_bytes


def _candidates(
    group: ExpertGroup, estimate_bytes: EstimateBytes, *, spill: bool
) -> list[BatchPlan]:
    # The slope where the batch dominates: small ones may hide below a fixed part of the stage.
    each = (estimate_bytes(BatchPlan(2 * _MANY)) - estimate_bytes(BatchPlan(_MANY))) // _MANY
    sizes = budget.batches(group.sizes, each)
    return [
        BatchPlan(batch, spilled) for spilled, batch in product((False, True)[: 1 + spill], sizes)
    ]


def _reader_bytes(group: ExpertGroup) -> budget.ReaderBytes:
    def needed(batch: int, rows: int | None) -> int:
        return ExpertReader.buffer_bytes(group.experts[0], batch, rows)

    return needed
