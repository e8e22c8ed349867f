"""Every term of every price, with distinct small numbers."""

import pytest

from globe_stream.errors import InputError
from globe_stream.memory import cost_model as budget
from globe_stream.memory.cost_model import Knobs
from globe_stream.factorization.groups import Sizes

MIB = 1 << 20
SMALL = Sizes(experts=7, p=5, d=11, rank=3, bases=2, itemsize=2)
RD, RR, PR = 3 * 11, 3 * 3, 5 * 3
BANK = 4 * 2 * 3 * 11


def reader(batch, rows):
    """A reader of 1000 bytes an expert and 10 more a row."""
    return 1000 * batch + 10 * (rows or 0)


def nothing(_batch, _rows):
    return 0


def test_statistics():
    def price(sizes, *kinds):
        return budget.statistics_price(sizes, Knobs(4), reader, kinds)

    fixed = 4000 + 48 * 7
    assert price(SMALL, "rows") == fixed
    assert price(SMALL, "left_gram", "rows") == fixed + 12 * 5 * 5
    assert price(SMALL, "procrustes") == fixed + 4 * RD + 40 * 5 * 5
    wide = Sizes(experts=7, p=5, d=200, rank=3, bases=2, itemsize=2)
    rotation = 4 * (4 * PR + 2 * RR)
    assert price(wide, "procrustes", "rows") == fixed + 4 * 600 + rotation + 8 * 600


def test_proxies():
    batch = 4 * RD * (4 + 2)
    price = budget.proxies_price
    assert price(SMALL, Knobs(4), reader, "rows", 2) == 4000 + 10 * 3 + batch
    assert price(SMALL, Knobs(4), reader, "svd", 2) == 4000 + batch + 40 * 5 * 5
    assert price(SMALL, Knobs(4), reader, "left_gram", 2) == 8 * PR + 4000 + batch
    assert price(SMALL, Knobs(4), nothing, "left_gram", 2) == 8 * PR + max(40 * 5 * 5, batch)
    rotations = 4 * 4 * (4 * PR + 2 * RR)
    assert price(SMALL, Knobs(4), reader, "procrustes", 2) == 4 * RD + 4000 + batch + rotations


@pytest.mark.parametrize("itemsize", [2, 4])
def test_gram(itemsize):
    tile, slice_, square, panels = 7 * RD * itemsize, 7 * 4096 * 4, 7 * 7 * 8, 7 * 512 * 12
    assert budget.gram_price(SMALL, itemsize) == tile + slice_ + square + panels


def test_atoms_by_what_dominates():
    """The method's matrices, a tile of proxies beside one of atoms, or writing a chunk."""
    square, small = 8 * 49, 96 * 7 * 2
    assert budget.atoms_price(SMALL, 2) == square + small + 6 * square
    wide = Sizes(experts=5, p=50, d=300, rank=40, bases=1, itemsize=2)
    tile, bank = 5 * 40 * 300 * 6, 4 * 40 * 300
    assert budget.atoms_price(wide, 2) == 8 * 25 + 96 * 5 + tile + 2 * bank
    full = Sizes(experts=5, p=50, d=300, rank=40, bases=5, itemsize=2)
    assert budget.atoms_price(full, 2) == 8 * 25 + 96 * 25 + 4 * 5 * bank


def test_measure_with_a_resident_and_a_spilled_bank(monkeypatch):
    fit = budget.fit_bytes(SMALL)
    common = 4 * 7 * 2 + 4000 + 4 * fit
    assert budget.measure_price(SMALL, Knobs(4), reader) == BANK + 2 * BANK + common
    monkeypatch.setattr(budget, "TILE_BYTES", 4 * 2 * 11)  # one row a tile
    tile = BANK // 3
    assert budget.measure_price(SMALL, Knobs(4), reader) == BANK + 2 * tile + common
    assert budget.measure_price(SMALL, Knobs(4, spill=True), reader) == tile + 2 * tile + common


def test_fit_holds_its_mixtures_and_the_largest_of_its_moments():
    assert budget.fit_bytes(SMALL) == 4 * (2 * RD + RR + 4 * PR)
    wide = Sizes(experts=7, p=5, d=1000, rank=3, bases=2, itemsize=2)
    assert budget.fit_bytes(wide) == 4 * (2 * 3000 + RR + 4 * PR)
    assert budget.fit_bytes(wide, curved=True) == 4 * (2 * 3000 + 2 * 3000)


def test_baseline():
    assert budget.baseline_price(SMALL, Knobs(4), reader) == 4000 + 25 * (4 + 3 * 8)


def test_training_grows_with_each_of_its_parts(monkeypatch):
    """A resident bank counts twice, a batch by its experts, a larger model by N codes."""
    monkeypatch.setattr(budget, "ATOM_CHUNK_BYTES", 1)
    monkeypatch.setattr(budget, "LIVE_ARRAYS", 0, raising=False)

    def price(sizes=SMALL, batch=40, *, spill=False, warmup=True, curved=False):
        return budget.train_price(sizes, Knobs(batch, spill), reader, warmup=warmup, curved=curved)

    one = max(budget.fit_bytes(SMALL), budget.direction_bytes(SMALL, True, False))
    assert price(batch=41) - price() == 1000 + one
    more = Sizes(experts=8, p=5, d=11, rank=3, bases=2, itemsize=2)
    assert price(more) - price() == 8 * 2 + 24
    monkeypatch.setattr(budget, "TILE_BYTES", 4 * 2 * 11)
    assert price() - price(spill=True) == 2 * BANK - 2 * BANK // 3
    assert price(warmup=False) < price()
    assert price(curved=True) > price()


def test_the_step_holds_no_more_than_whole_banks():
    """Chunks of atoms are never larger than the bank they are cut from."""
    step = budget.train_price(SMALL, Knobs(1), nothing, warmup=False, curved=False)
    assert step < 100_000


def test_a_step_counts_when_it_needs_more_than_the_pass(monkeypatch):
    monkeypatch.setattr(budget, "LIVE_ARRAYS", 0)
    pass_only = budget.train_price(SMALL, Knobs(1), nothing, warmup=False, curved=False)
    larger = budget.train_price(SMALL, Knobs(2), nothing, warmup=False, curved=False)
    assert larger == pass_only, "tiny batches hide below the step"


# -- tiles and batches ---------------------------------------------------------------------------


def test_tiles_stay_below_their_sizes_and_ignore_the_budget():
    sizes = Sizes(experts=1440, p=1408, d=2048, rank=1056, bases=128, itemsize=2)
    rows = budget.tile_rows(sizes)
    assert 4 * 128 * rows * 2048 <= budget.TILE_BYTES
    assert 4 * 1440 * rows * 2048 <= budget.PROXY_TILE_BYTES
    assert budget.bank_tile_bytes(sizes) == 4 * 128 * rows * 2048
    assert budget.tile_rows(SMALL) == 3


@pytest.mark.parametrize(("bytes_each", "expected"), [
    (1, [128, 64, 32, 16, 8, 4, 2, 1]), (100 * MIB, [5, 2, 1]), (10_000 * MIB, [1]), (0, [128, 64,
     32, 16, 8, 4, 2, 1]),
])  # fmt: skip
def test_batches_halve_from_the_largest_useful_one(bytes_each, expected):
    many = Sizes(experts=1000, p=5, d=11, rank=3, bases=2, itemsize=2)
    assert budget.batches(many, bytes_each) == expected
    assert budget.batches(SMALL, 1) == [7, 3, 1]


# -- the choice ----------------------------------------------------------------------------------

CANDIDATES = (Knobs(4), Knobs(2), Knobs(1), Knobs(2, spill=True), Knobs(1, spill=True))


def cost(knobs):
    return (10 if knobs.spill else 50) * MIB + knobs.batch * 7 * MIB


def choose(limit):
    return budget.choose("train of up", CANDIDATES, cost, limit, 100 * MIB, "buy more")


@pytest.mark.parametrize(("room", "expected"), [
    (78, Knobs(4)), (77, Knobs(2)), (64, Knobs(2)), (63, Knobs(1)), (56, Knobs(2, True)),
    (24, Knobs(2, True)), (23, Knobs(1, True)), (17, Knobs(1, True)),
])  # fmt: skip
def test_the_first_that_fits_with_some_slack(room, expected):
    plan = choose(100 * MIB + room * MIB + budget.COMPILED_BYTES + budget.SLACK_BYTES)
    assert plan.knobs == expected
    assert plan.price == cost(expected) + budget.COMPILED_BYTES
    assert plan.stage == "train of up"


def test_a_refusal_names_stage_need_limit_and_knob():
    least = 100 * MIB + 17 * MIB + budget.COMPILED_BYTES + budget.SLACK_BYTES
    with pytest.raises(InputError) as refusal:
        choose(least - 1)
    said = str(refusal.value)
    assert "--memory 165.00 MiB: stage train of up needs at least 165.00 MiB" in said
    assert "(100.00 MiB of it for the program itself)" in said
    assert said.endswith("Raise --memory to 169MiB, or buy more")


def stage(name, least, smallest):
    return budget.Stage(name, CANDIDATES, lambda knobs: least * MIB + knobs.batch, smallest * MIB)


@pytest.mark.parametrize(("room", "helps"), [(40, True), (20, False)])
def test_a_refusal_names_the_stage_that_needs_most_and_advice_that_helps(room, helps):
    fixed = budget.COMPILED_BYTES + budget.SLACK_BYTES
    stages = [stage("first", 50, 10), stage("second", 90, 30), stage("third", 60, 5)]
    with pytest.raises(InputError, match="stage second needs at least") as refusal:
        budget.require(stages, 100 * MIB + fixed + room * MIB, 100 * MIB, "buy more")
    assert ("buy more" in str(refusal.value)) == helps
    budget.require(stages, stages[1].least(100 * MIB), 100 * MIB, "buy more")
    assert budget.safe_budget(stages[1].least(0)) >= stages[1].least(budget.BASE_SPREAD_BYTES)
