"""Every term of every estimate, with distinct small numbers."""

import pytest

from globe_stream.factorization.sizes import GroupSizes
from globe_stream.memory import cost_model as budget
from globe_stream.memory import export_cost, seeding_cost
from globe_stream.memory.cost_model import BatchPlan

MIB = 1 << 20
SMALL = GroupSizes(experts=7, p=5, d=11, rank=3, bases=2, itemsize=2)
RD, RR, PR = 3 * 11, 3 * 3, 5 * 3
BANK = 4 * 2 * 3 * 11


def reader(batch, rows):
    """A reader of 1000 bytes an expert and 10 more a row."""
    return 1000 * batch + 10 * (rows or 0)


def nothing(_batch, _rows):
    return 0


def test_statistics():
    def estimate_bytes(sizes, *kinds):
        return seeding_cost.statistics_bytes(sizes, BatchPlan(4), reader, kinds)

    fixed = 4000 + 48 * 7
    assert estimate_bytes(SMALL, "rows") == fixed
    assert estimate_bytes(SMALL, "left_gram", "rows") == fixed + 12 * 5 * 5
    assert estimate_bytes(SMALL, "procrustes") == fixed + 4 * RD + 40 * 5 * 5
    wide = GroupSizes(experts=7, p=5, d=200, rank=3, bases=2, itemsize=2)
    rotation = 4 * (3 * PR + 2 * RR)
    assert estimate_bytes(wide, "procrustes", "rows") == fixed + 4 * 600 + rotation + 8 * 600


def test_proxies():
    batch = 4 * RD * (4 + 2 + 2) + budget.page_rounding(SMALL, 4)
    estimate_bytes = seeding_cost.proxies_bytes
    assert estimate_bytes(SMALL, BatchPlan(4), reader, "rows", 2) == 4000 + 10 * 3 + batch
    assert estimate_bytes(SMALL, BatchPlan(4), reader, "svd", 2) == 4000 + batch + 40 * 5 * 5
    assert estimate_bytes(SMALL, BatchPlan(4), reader, "left_gram", 2) == 8 * PR + 4000 + batch
    assert estimate_bytes(SMALL, BatchPlan(4), nothing, "left_gram", 2) == 8 * PR + max(
        40 * 5 * 5, batch
    )
    rotations = 4 * 4 * (3 * PR + 2 * RR)
    assert (
        estimate_bytes(SMALL, BatchPlan(4), reader, "procrustes", 2)
        == 4 * RD + 4000 + batch + rotations
    )


@pytest.mark.parametrize("itemsize", [2, 4])
def test_gram(itemsize):
    tile, slice_, square, panels = 7 * RD * itemsize, 7 * 4096 * 4, 7 * 7 * 8, 7 * 512 * 12
    assert seeding_cost.gram_bytes(SMALL, itemsize) == tile + slice_ + square + panels


def test_no_gram_matrix_is_counted_where_none_is_formed():
    many = GroupSizes(experts=15_000, p=8, d=16, rank=4, bases=50, itemsize=2)
    square = 8 * 15_000**2
    assert seeding_cost.gram_bytes(many, 2) > square
    assert seeding_cost.atoms_bytes(many, 2) > 7 * square
    assert seeding_cost.gram_bytes(many, 2, 58) == 15_000 * 64 * 2 + 512 * 64 * 12
    assert seeding_cost.atoms_bytes(many, 2, 58) < square / 4


def test_atoms_by_what_dominates(monkeypatch):
    """The method's matrices, the codes, a tile of proxies beside one of atoms, writing a chunk."""
    monkeypatch.setattr(seeding_cost, "POLISH_CHUNKS", 0)
    square, small = 8 * 49, 96 * 7 * 2
    assert seeding_cost.atoms_bytes(SMALL, 2) == square + small + 6 * square
    wide = GroupSizes(experts=5, p=50, d=300, rank=40, bases=1, itemsize=2)
    tile, bank = 5 * 40 * 300 * 6, 4 * 40 * 300
    assert seeding_cost.atoms_bytes(wide, 2) == 8 * 25 + 32 * 5 + tile + 2 * bank
    full = GroupSizes(experts=5, p=50, d=300, rank=40, bases=5, itemsize=2)
    assert seeding_cost.atoms_bytes(full, 2) == 8 * 25 + 32 * 25 + 4 * 5 * bank
    products = 8 * (10 * 5 * 3 + 8 * 9) + tile + 4 * 40 * 300 * 3
    assert seeding_cost.atoms_bytes(wide, 2, 3) == products
    monkeypatch.setattr(seeding_cost, "POLISH_CHUNKS", 5)
    assert seeding_cost.atoms_bytes(SMALL, 2) == square + max(
        small + 6 * square, (32 + 96) * 14 + 5 * 8 * 28
    )


def test_measure_with_a_resident_and_a_spilled_bank(monkeypatch):
    mixtures, fits = 4 * 4 * RD, 4 * budget.fit_bytes(SMALL)
    common = 4 * 7 * 2 + 4000 + mixtures + fits
    assert budget.measure_bytes(SMALL, BatchPlan(4), reader) == BANK + 2 * BANK + common
    monkeypatch.setattr(budget, "TILE_BYTES", 4 * 2 * 11)  # one row a tile
    tile = BANK // 3
    assert budget.measure_bytes(SMALL, BatchPlan(4), reader) == BANK + 2 * tile + common
    assert budget.measure_bytes(SMALL, BatchPlan(4, spill=True), reader) == tile + 2 * tile + common


def test_fit_holds_its_hidden_factor_and_the_largest_of_its_moments():
    """Solving dominates a tall expert, the residual a wide one."""
    tall = GroupSizes(experts=7, p=50, d=11, rank=10, bases=2, itemsize=2)
    assert budget.fit_bytes(tall) == 4 * (110 + 2 * 100 + 3 * 500)
    wide = GroupSizes(experts=7, p=5, d=1000, rank=3, bases=2, itemsize=2)
    assert budget.fit_bytes(wide) == 4 * (3000 + RR + 2 * PR + 5000)
    assert budget.fit_bytes(wide, curved=True) == 4 * (3000 + 2 * 3000)


def test_baseline():
    assert seeding_cost.baseline_bytes(SMALL, BatchPlan(4), reader) == 4000 + 8 * (5 * 11 + 4 * 25)


def train_bytes(sizes, batch_plan, reader, *, rotates=True, blended=False, curved=False):
    return budget.train_bytes(
        sizes, batch_plan, reader, rotates=rotates, blended=blended, curved=curved
    )


def test_training_grows_with_each_of_its_parts(monkeypatch):
    """A resident bank counts twice, a batch by its experts, a larger model by N codes."""
    monkeypatch.setattr(budget, "ATOM_CHUNK_BYTES", 1)
    monkeypatch.setattr(budget, "LIVE_ARRAYS", 0, raising=False)

    def estimate_bytes(sizes=SMALL, batch=40, *, spill=False, **kind):
        return train_bytes(sizes, BatchPlan(batch, spill), reader, **kind)

    one = max(budget.fit_bytes(SMALL), budget.gradient_bytes(SMALL, True, False, False))
    assert estimate_bytes(batch=41) - estimate_bytes() == 1000 + 4 * RD + one
    more = GroupSizes(experts=8, p=5, d=11, rank=3, bases=2, itemsize=2)
    assert estimate_bytes(more) - estimate_bytes() == 8 * 2 + 24
    monkeypatch.setattr(budget, "TILE_BYTES", 4 * 2 * 11)
    assert estimate_bytes() - estimate_bytes(spill=True) == 2 * BANK - 2 * BANK // 3
    tall = GroupSizes(experts=7, p=40, d=12, rank=11, bases=2, itemsize=2)
    assert estimate_bytes(tall, rotates=False) < estimate_bytes(tall)
    flat = GroupSizes(experts=7, p=4, d=20, rank=4, bases=2, itemsize=2)
    assert estimate_bytes(flat, curved=True) > estimate_bytes(flat)
    assert estimate_bytes(flat, blended=True) - estimate_bytes(flat) == 40 * 4 * 4 * 20


def test_the_step_holds_no_more_than_whole_banks():
    """Chunks of atoms are never larger than the bank they are cut from."""
    step = train_bytes(SMALL, BatchPlan(1), nothing, rotates=False)
    assert step < 100_000


def test_a_step_counts_when_it_needs_more_than_the_pass(monkeypatch):
    monkeypatch.setattr(budget, "LIVE_ARRAYS", 0)
    pass_only = train_bytes(SMALL, BatchPlan(1), nothing, rotates=False)
    larger = train_bytes(SMALL, BatchPlan(2), nothing, rotates=False)
    assert larger == pass_only, "tiny batches hide below the step"


# -- tiles and batches ---------------------------------------------------------------------------


def test_tiles_stay_below_their_sizes_and_ignore_the_budget():
    sizes = GroupSizes(experts=1440, p=1408, d=2048, rank=1056, bases=128, itemsize=2)
    rows = budget.tile_rows(sizes)
    assert 4 * 128 * rows * 2048 <= budget.TILE_BYTES
    assert 4 * 1440 * rows * 2048 <= budget.PROXY_TILE_BYTES
    assert budget.bank_tile_bytes(sizes) == 4 * 128 * rows * 2048
    assert budget.tile_rows(SMALL) == 3


@pytest.mark.parametrize(("bytes_each", "expected"), [
    (1, [128, 64, 32, 16, 8, 4, 2, 1]), (150 * MIB, [5, 2, 1]), (10_000 * MIB, [1]), (0, [128, 64,
     32, 16, 8, 4, 2, 1]),
])  # fmt: skip
def test_batches_halve_from_the_largest_useful_one(bytes_each, expected):
    many = GroupSizes(experts=1000, p=5, d=11, rank=3, bases=2, itemsize=2)
    assert budget.batches(many, bytes_each) == expected
    assert budget.batches(SMALL, 1) == [7, 3, 1]


def test_exports():
    one = budget.fit_bytes(SMALL) + 4 * (3 * RD + PR + 2 * 5 * 11)
    fixed = one + 4 * RD + 2 * export_cost.PIECE_BYTES + 8 * 7 * 2
    assert export_cost.estimate_export(SMALL, 4000, 3 * BANK) == 4000 + 3 * BANK + fixed
    rounding = 4 * 3 * PR + 8 * 5 * RR
    assert export_cost.estimate_export(SMALL, 4000, 3 * BANK, rounds=True) == (
        4000 + 3 * BANK + fixed + rounding
    )
    svd = 8 * (5 * 11 + 4 * 25) + 4 * 3 * 5 * 11 + 2 * export_cost.PIECE_BYTES
    assert export_cost.estimate_svd_export(5, 11, 4000) == 4000 + svd
