"""Chooses batch and spilling for every stage of a unit, before any work.

Resident banks are tried before spilled ones, and large batches before small ones.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from itertools import product

from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.config import TrainConfig
from globe_stream.memory import cost_model as budget
from globe_stream.memory.cost_model import Knobs, Stage, StagePlan
from globe_stream.factorization.groups import Unit

_MANY = 1024
_FEWER = "choose a smaller --rank or --bases, or --bank-scope layer"

Price = Callable[[Knobs], int]


def seed_stages(unit: Unit, proxies: str, kinds: Collection[str] = ()) -> dict[str, Stage]:
    """Every seeding stage of `unit` by name.

    `kinds` are those that the statistics serve, when more than `proxies`.
    """
    prices = _seed_prices(unit, proxies, kinds)
    small = _seed_prices(_smallest(unit), proxies, kinds)
    return {
        name: _stage(f"seed/{name} of {unit.key}", unit, price, small[name], name == "measure")
        for name, price in prices.items()
    }


def train_stage(unit: Unit, config: TrainConfig) -> Stage:
    """The epochs of `unit`."""
    price, small = _train_price(unit, config), _train_price(_smallest(unit), config)
    return _stage(f"train of {unit.key}", unit, price, small, True)


def require(stages: Iterable[Stage], limit: int, base: int) -> None:
    """Raise InputError unless all of `stages` fit `limit`, naming the one that needs most."""
    budget.require(stages, limit, base, _FEWER)


def seed_plans(
    unit: Unit, proxies: str, limit: int, base: int, kinds: Collection[str] = ()
) -> dict[str, StagePlan]:
    """A plan for every seeding stage of `unit`; InputError when they cannot all fit `limit`.

    `kinds` are those that the statistics serve, when more than `proxies`.
    """
    stages = seed_stages(unit, proxies, kinds)
    require(stages.values(), limit, base)
    return {name: _plan(stage, limit, base) for name, stage in stages.items()}


def train_plan(unit: Unit, config: TrainConfig, limit: int, base: int) -> StagePlan:
    """The plan of `unit`'s epochs; InputError when even spilled banks do not fit `limit`."""
    stage = train_stage(unit, config)
    require([stage], limit, base)
    return _plan(stage, limit, base)


def _plan(stage: Stage, limit: int, base: int) -> StagePlan:
    return budget.choose(stage.name, stage.candidates, stage.price, limit, base, _FEWER)


def _stage(name: str, unit: Unit, price: Price, small: Price, spill: bool) -> Stage:
    smallest = min(map(small, _candidates(_smallest(unit), small, spill=spill)))
    return Stage(name, _candidates(unit, price, spill=spill), price, smallest)


def _smallest(unit: Unit) -> Unit:
    """`unit` with the smallest bank: one atom of one row, for the experts of one layer."""
    first = unit.experts[0].layer
    members = tuple(expert for expert in unit.experts if expert.layer == first)
    return replace(unit, experts=members, rank=1, bases=1)


def _seed_prices(unit: Unit, proxies: str, kinds: Collection[str]) -> dict[str, Price]:
    sizes, reader = unit.sizes, _reader_bytes(unit)
    itemsize = unit.proxy_dtype.itemsize
    return {
        "statistics": lambda k: budget.statistics_price(sizes, k, reader, kinds or {proxies}),
        "proxies": lambda k: budget.proxies_price(sizes, k, reader, proxies, itemsize),
        "gram": lambda _: budget.gram_price(sizes, itemsize),
        "atoms": lambda _: budget.atoms_price(sizes, itemsize),
        "measure": lambda k: budget.measure_price(sizes, k, reader),
        "baseline": lambda k: budget.baseline_price(sizes, k, reader),
    }


def _train_price(unit: Unit, config: TrainConfig) -> Price:
    sizes, reader = unit.sizes, _reader_bytes(unit)

    def price(knobs: Knobs) -> int:
        return budget.train_price(
            sizes,
            knobs,
            reader,
            warmup=config.warmup_epochs > 0,
            curved=config.activation != "none",
        )

    return price


def _candidates(unit: Unit, price: Price, *, spill: bool) -> list[Knobs]:
    # The slope where the batch dominates: small ones may hide below a fixed part of the stage.
    each = (price(Knobs(2 * _MANY)) - price(Knobs(_MANY))) // _MANY
    sizes = budget.batches(unit.sizes, each)
    return [Knobs(batch, spilled) for spilled, batch in product((False, True)[: 1 + spill], sizes)]


def _reader_bytes(unit: Unit) -> budget.ReaderBytes:
    def needed(batch: int, rows: int | None) -> int:
        return ExpertReader.buffer_bytes(unit.experts[0], batch, rows)

    return needed
