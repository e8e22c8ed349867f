"""Chooses batches, spilling and resident banks before any work, so that a budget is kept.

Candidates are tried best first: banks in memory before spilled ones, large batches before small
ones. The bytes of each are those of `cost_model`. Source: docs/design.md, section Memory.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.config import TrainConfig
from globe_stream.errors import InputError, option
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.formatting import format_bytes
from globe_stream.memory import cost_model, export_cost, seeding_cost
from globe_stream.memory.base import measured_base
from globe_stream.memory.cost_model import BatchPlan, StagePlan, budget_for, safe_budget
from globe_stream.memory.device_memory import STEP

_MANY = 1024
_EXPORT_BATCHES = (8, 4, 2, 1)
_FEWER = f"choose a smaller {option('rank')} or {option('bases')}, or {option('bank_scope')} layer"

EstimateBytes = Callable[[BatchPlan], int]
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Stage:
    """A stage before its plan: the candidates, best first, and the bytes of each above the base.

    `smallest` is the least that it takes with the smallest bank that the experts allow.
    """

    name: str
    candidates: Sequence[BatchPlan]
    estimate_bytes: EstimateBytes
    smallest: int

    def least(self, base: int) -> int:
        """The smallest budget in which it can be carried out."""
        return budget_for(base, min(map(self.estimate_bytes, self.candidates)))


@dataclass(frozen=True)
class ExportPlan:
    """How many banks stay in memory (none: atoms are read as needed), and the reader's batch.

    `estimate_bytes` is the peak expected, the program itself and compiled kernels included; a
    budget must leave SLACK_BYTES besides.
    """

    resident: int
    batch: int
    estimate_bytes: int


# -- the stages of seeding and training ------------------------------------------------------


def seed_stages(
    group: ExpertGroup,
    proxies: str,
    kinds: Collection[str] = (),
    products: int | None = None,
    processes: int = 1,
) -> dict[str, Stage]:
    """Every seeding stage of `group` by name.

    `kinds` are those that the statistics serve, when more than `proxies`. `products` is None where
    the Gram matrix of the proxies is formed, else the vectors that it is multiplied with.
    """
    estimates = _seed_estimates(group, proxies, kinds, products, processes)
    one = None if products is None else 1
    small = _seed_estimates(_smallest(group), proxies, kinds, one, processes)
    return {
        name: _stage(
            f"seed/{name} of {group.key}", group, estimate_bytes, small[name], name == "measure"
        )
        for name, estimate_bytes in estimates.items()
    }


def train_stage(group: ExpertGroup, config: TrainConfig, processes: int = 1) -> Stage:
    """The epochs of `group`."""
    estimate_bytes = _train_bytes(group, config, processes)
    small = _train_bytes(_smallest(group), config, processes)
    return _stage(f"train of {group.key}", group, estimate_bytes, small, True)


def plans(stages: Mapping[str, Stage], limit: int, base: int) -> dict[str, StagePlan]:
    """A plan for every one of `stages` by name; InputError when they cannot all fit `limit`."""
    require(stages.values(), limit, base)
    return {name: _plan(stage, limit, base) for name, stage in stages.items()}


def train_plan(
    group: ExpertGroup, config: TrainConfig, limit: int, base: int, processes: int = 1
) -> StagePlan:
    """The plan of `group`'s epochs; InputError when even spilled banks do not fit `limit`."""
    return plans({"train": train_stage(group, config, processes)}, limit, base)["train"]


def require(
    stages: Iterable[Stage], limit: int, base: int, device_bytes: int | None = None
) -> None:
    """Raise InputError unless all of `stages` fit `limit`, naming the one that needs most.

    Smaller banks are advised only where they could make the stages fit. `device_bytes` are those
    that a GPU's budget leaves to arrays, where `limit` follows from it.
    """
    stages = list(stages)
    greatest = max(stages, key=lambda stage: stage.least(base))
    if greatest.least(base) <= limit:
        return
    helps = all(budget_for(base, stage.smallest) <= limit for stage in stages)
    advice, least = _FEWER if helps else "", greatest.least(base)
    if device_bytes is not None:
        raise _device_refusal(greatest.name, device_bytes, least - base, advice)
    raise _refusal(greatest.name, limit, base, least, advice)


# -- exports -----------------------------------------------------------------------------------


def plan_export(
    groups: Sequence[ExpertGroup],
    memory: int | None,
    *,
    rounds: bool = False,
    quantizes: bool = False,
    weighs: bool = False,
) -> ExportPlan:
    """The largest choice that fits `memory` bytes, base included; None means no limit.

    `rounds`, `quantizes` and `weighs` say how factors are fitted and written; see
    `export_cost.estimate_export`.

    Raises InputError when even one expert at a time does not fit.
    """
    banks = [group.sizes.bank_bytes for group in groups]
    resident = {len(groups): sum(banks), 1: max(banks), 0: 0}

    def estimate_bytes(choice: tuple[int, int]) -> int:
        return max(
            export_cost.estimate_export(
                group.sizes,
                _largest_reader(group.experts, choice[1]),
                resident[choice[0]],
                rounds=rounds,
                quantizes=quantizes,
                weighs=weighs,
            )
            for group in groups
        )

    return _export_plan("export", product(resident, _EXPORT_BATCHES), estimate_bytes, memory)


def plan_svd(experts: Sequence[ExpertMatrix], memory: int | None) -> ExportPlan:
    """As `plan_export`, for the truncated SVD of `experts`."""
    p, d = experts[0].shape

    def estimate_bytes(choice: tuple[int, int]) -> int:
        return export_cost.estimate_svd_export(p, d, _largest_reader(experts, choice[1]))

    choices = product((0,), _EXPORT_BATCHES)
    return _export_plan("truncated SVD", choices, estimate_bytes, memory)


def _export_plan(
    stage: str,
    choices: Iterable[tuple[int, int]],
    estimate_bytes: Callable[[tuple[int, int]], int],
    memory: int | None,
) -> ExportPlan:
    base, limit = measured_base(), sys.maxsize if memory is None else memory
    chosen, needed = choose(stage, choices, estimate_bytes, limit, base)
    return ExportPlan(*chosen, base + needed)


# -- the choice --------------------------------------------------------------------------------


def choose(
    stage: str,
    candidates: Iterable[Choice],
    estimate_bytes: Callable[[Choice], int],
    limit: int,
    base: int,
    advice: str = "",
) -> tuple[Choice, int]:
    """The first of `candidates` (best first) that fits `limit`, and its bytes above the base.

    As the base differs by a hair from one process to the next, and what is chosen decides last
    bits, a coarse one is assumed; where nothing fits beside that, the smallest is chosen. Compiled
    kernels are counted among the bytes, once for every stage. Raises InputError naming the stage,
    the least it needs, the limit and what to change.
    """
    priced = [(candidate, estimate_bytes(candidate)) for candidate in candidates]
    assumed = cost_model.assumed_base(base)
    fitting = [one for one in priced if budget_for(assumed, one[1]) <= limit]
    chosen, least = fitting[0] if fitting else min(priced, key=lambda one: one[1])
    if budget_for(base, least) > limit:
        raise _refusal(stage, limit, base, budget_for(base, least), advice)
    return chosen, least + cost_model.COMPILED_BYTES


def _refusal(stage: str, limit: int, base: int, least: int, advice: str) -> InputError:
    return InputError(
        f"{option('memory')} {format_bytes(limit)}: stage {stage} needs at least "
        f"{format_bytes(least)} ({format_bytes(base)} of it for the program itself). "
        f"Raise {option('memory')} to {safe_budget(least) >> 20}MiB"
        + (f", or {advice}" if advice else "")
    )


def _device_refusal(stage: str, device_bytes: int, least: int, advice: str) -> InputError:
    """As `_refusal`, of the budget of a GPU, which holds no program."""
    return InputError(
        f"{option('device_memory')} {format_bytes(device_bytes)}: stage {stage} needs at least "
        f"{format_bytes(least)}. Raise {option('device_memory')} to "
        f"{safe_budget(least + STEP) >> 20}MiB" + (f", or {advice}" if advice else "")
    )


def _plan(stage: Stage, limit: int, base: int) -> StagePlan:
    chosen = choose(stage.name, stage.candidates, stage.estimate_bytes, limit, base, _FEWER)
    return StagePlan(stage.name, *chosen)


def _stage(
    name: str, group: ExpertGroup, estimate_bytes: EstimateBytes, small: EstimateBytes, spill: bool
) -> Stage:
    smallest = min(map(small, _candidates(_smallest(group), small, spill=spill)))
    return Stage(name, _candidates(group, estimate_bytes, spill=spill), estimate_bytes, smallest)


def _smallest(group: ExpertGroup) -> ExpertGroup:
    """`group` with the smallest bank: one atom of one row, for the experts of one layer."""
    first = group.experts[0].layer
    members = tuple(expert for expert in group.experts if expert.layer == first)
    return replace(group, experts=members, rank=1, bases=1)


def _seed_estimates(
    group: ExpertGroup,
    proxies: str,
    kinds: Collection[str],
    products: int | None,
    processes: int,
) -> dict[str, EstimateBytes]:
    sizes, reader = group.sizes, _reader_bytes(group)
    itemsize = group.proxy_dtype.itemsize
    more = cost_model.exchange_bytes(sizes, itemsize, processes)
    alone: dict[str, EstimateBytes] = {
        "statistics": lambda k: seeding_cost.statistics_bytes(sizes, k, reader, kinds or {proxies}),
        "proxies": lambda k: seeding_cost.proxies_bytes(sizes, k, reader, proxies, itemsize),
        "gram": lambda _: seeding_cost.gram_bytes(sizes, itemsize, products),
        "atoms": lambda _: seeding_cost.atoms_bytes(sizes, itemsize, products),
        "measure": lambda k: cost_model.measure_bytes(sizes, k, reader),
        "baseline": lambda k: seeding_cost.baseline_bytes(sizes, k, reader),
    }
    return {
        name: _plus(estimate_bytes, more.get(name, more[""]))
        for name, estimate_bytes in alone.items()
    }


def _plus(estimate_bytes: EstimateBytes, more: int) -> EstimateBytes:
    return lambda batch_plan: estimate_bytes(batch_plan) + more


def _train_bytes(group: ExpertGroup, config: TrainConfig, processes: int) -> EstimateBytes:
    sizes, reader = group.sizes, _reader_bytes(group)
    more = cost_model.exchange_bytes(sizes, group.proxy_dtype.itemsize, processes)

    def estimate_bytes(batch_plan: BatchPlan) -> int:
        return cost_model.train_bytes(
            sizes,
            batch_plan,
            reader,
            rotates=config.warmup_epochs + config.blend_epochs > 0,
            blended=config.blend_epochs > 0,
            curved=config.activation != "none",
        )

    return _plus(estimate_bytes, more[""])


def _candidates(
    group: ExpertGroup, estimate_bytes: EstimateBytes, *, spill: bool
) -> list[BatchPlan]:
    # The slope where the batch dominates: small ones may hide below a fixed part of the stage.
    each = (estimate_bytes(BatchPlan(2 * _MANY)) - estimate_bytes(BatchPlan(_MANY))) // _MANY
    sizes = cost_model.batches(group.sizes, each)
    on_disk = cost_model.spilled_batches(group.sizes) if spill else []
    return [*(BatchPlan(batch) for batch in sizes), *(BatchPlan(batch, True) for batch in on_disk)]


def _reader_bytes(group: ExpertGroup) -> cost_model.ReaderBytes:
    def needed(batch: int, rows: int | None) -> int:
        return ExpertReader.buffer_bytes(group.experts[0], batch, rows)

    return needed


def _largest_reader(experts: Sequence[ExpertMatrix], batch: int) -> int:
    """Bytes of a reader of `experts`, whatever their dtypes."""
    kinds = {expert.dtype: expert for expert in experts}
    return max(ExpertReader.buffer_bytes(expert, batch) for expert in kinds.values())
