"""Chooses batch and spilling for every stage of a unit, before any work.

Resident banks are tried before spilled ones, and large batches before small ones.
"""

from collections.abc import Callable, Collection
from itertools import product

from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.config import TrainConfig
from globe_stream.memory import budget
from globe_stream.memory.budget import Knobs, StagePlan
from globe_stream.scope import Unit

_MANY = 1024
_FEWER = "a smaller --rank or --bases, or --bank-scope layer"


def seed_plans(
    unit: Unit, proxies: str, limit: int, base: int, kinds: Collection[str] = ()
) -> dict[str, StagePlan]:
    """A plan for every seeding stage of `unit`; InputError when one cannot fit `limit`.

    `kinds` are those that the statistics serve, when more than `proxies`.
    """
    sizes, reader = unit.sizes, _reader_bytes(unit)
    itemsize = unit.proxy_dtype.itemsize
    prices: dict[str, Callable[[Knobs], int]] = {
        "statistics": lambda k: budget.statistics_price(sizes, k, reader, kinds or {proxies}),
        "proxies": lambda k: budget.proxies_price(sizes, k, reader, proxies, itemsize),
        "gram": lambda _: budget.gram_price(sizes, itemsize),
        "atoms": lambda _: budget.atoms_price(sizes, itemsize),
        "measure": lambda k: budget.measure_price(sizes, k, reader),
        "baseline": lambda k: budget.baseline_price(sizes, k, reader),
    }
    spilling = {"measure"}
    return {
        stage: budget.choose(
            f"seed/{stage} of {unit.key}",
            _candidates(unit, price, spill=stage in spilling),
            price,
            limit,
            base,
            _FEWER,
        )
        for stage, price in prices.items()
    }


def train_plan(unit: Unit, config: TrainConfig, limit: int, base: int) -> StagePlan:
    """The plan of `unit`'s epochs; InputError when even spilled banks do not fit `limit`."""
    sizes, reader = unit.sizes, _reader_bytes(unit)

    def price(knobs: Knobs) -> int:
        return budget.train_price(
            sizes,
            knobs,
            reader,
            warmup=config.warmup_epochs > 0,
            curved=config.activation != "none",
        )

    return budget.choose(
        f"train of {unit.key}", _candidates(unit, price, spill=True), price, limit, base, _FEWER
    )


def _candidates(unit: Unit, price: Callable[[Knobs], int], *, spill: bool) -> list[Knobs]:
    # The slope where the batch dominates: small ones may hide below a fixed part of the stage.
    each = (price(Knobs(2 * _MANY)) - price(Knobs(_MANY))) // _MANY
    sizes = budget.batches(unit.sizes, each)
    return [Knobs(batch, spilled) for spilled, batch in product((False, True)[: 1 + spill], sizes)]


def _reader_bytes(unit: Unit) -> budget.ReaderBytes:
    def needed(batch: int, rows: int | None) -> int:
        return ExpertReader.buffer_bytes(unit.experts[0], batch, rows)

    return needed
