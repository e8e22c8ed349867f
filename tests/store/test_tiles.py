"""Tiled arrays: spilled and resident ones behave alike, and like one plain tensor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from globe_stream.errors import GlobeError
from globe_stream.store.tiles import Tiles, balanced_rows, tile_bounds

SHAPE = (5, 11, 3)


def pair(tmp_path, dtype=torch.float32, rows=4):
    spilled = Tiles(SHAPE, rows, dtype=dtype, path=tmp_path / "spilled")
    return Tiles(SHAPE, rows, dtype=dtype), spilled


def content(tiles):
    return torch.cat([tile.clone() for _, tile in tiles], dim=1)


@pytest.mark.parametrize(
    ("rows", "limit", "expected"),
    [(11, 4, 4), (12, 5, 4), (7, 100, 7), (9, 1, 1), (10, 0, 1), (9, 8, 5)],
)
def test_rows_are_balanced_under_the_limit(rows, limit, expected):
    assert balanced_rows(rows, limit) == expected


@pytest.mark.parametrize("rows", [1, 2, 5, 11, 40])
def test_bounds_cover_all_rows_once(rows):
    bounds = tile_bounds(11, rows)
    assert [row for start, stop in bounds for row in range(start, stop)] == list(range(11))
    assert all(0 < stop - start <= rows for start, stop in bounds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [1, 4, 11])
def test_spilled_and_resident_agree_with_a_plain_tensor(tmp_path, dtype, rows):
    generator = torch.Generator().manual_seed(0)
    plain = torch.zeros(SHAPE, dtype=dtype)
    both = pair(tmp_path, dtype, rows)
    for tile, (start, stop) in enumerate(both[0].bounds):
        values = torch.randn(5, stop - start, 3, generator=generator).to(dtype)
        plain[:, start:stop] = values
        for tiles in both:
            tiles.store(tile, values)
    part = torch.randn(2, 11, 3, generator=generator).to(dtype)
    plain[1:3] = part
    last = len(both[0]) - 1
    start, stop = both[0].bounds[last]
    single = torch.randn(1, stop - start, 3, generator=generator).to(dtype)
    plain[4:5, start:stop] = single
    for tiles in both:
        tiles.put_items(1, part)
        tiles.write_items(4, single, last)
        assert torch.equal(content(tiles), plain)
        assert torch.equal(tiles.items(0, 5), plain)
        assert torch.equal(tiles.items(2, 4), plain[2:4])


def test_a_spilled_array_lives_in_its_file(tmp_path):
    _, spilled = pair(tmp_path)
    spilled.put_items(0, torch.arange(5 * 11 * 3).view(SHAPE).float())
    before = content(spilled)
    spilled.close()
    again = Tiles(SHAPE, 4, path=tmp_path / "spilled")
    assert torch.equal(content(again), before)
    again.zero()
    assert not content(again).any()
    assert (tmp_path / "spilled").stat().st_size == 4 * 5 * 11 * 3 + 8 * 5 * 3


def test_changes_to_a_loaded_tile_count_after_store_only_when_spilled(tmp_path):
    _, spilled = pair(tmp_path)
    spilled.zero()
    spilled.load(0).add_(1)
    assert not spilled.load(0).any()
    spilled.store(0, spilled.load(0).add_(1))
    spilled.load(1)
    assert bool((spilled.load(0) == 1).all())


def test_a_shortened_file_is_an_error(tmp_path):
    _, spilled = pair(tmp_path)
    spilled.zero()
    with (tmp_path / "spilled").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(GlobeError, match="spilled: ends at byte 100"):
        spilled.load(0)


@settings(max_examples=60)
@given(bit=st.integers(0, 8 * (4 * 5 * 11 * 3 + 8 * 5 * 3) - 1))
def test_a_flipped_bit_is_named_and_the_file_deleted(tmp_path_factory, bit):
    path = tmp_path_factory.mktemp("tiles") / "spilled"
    spilled = Tiles(SHAPE, 4, path=path)
    spilled.put_items(0, torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)))
    content(spilled)
    changed = bytearray(path.read_bytes())
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    item = bit // 32 // 12 % 5 if bit < 8 * 4 * 5 * 4 * 3 else None
    with pytest.raises(GlobeError, match=r"spilled: the rows from \d+ on of item (\d)") as told:
        content(spilled)
    if item is not None:
        assert f"from 0 on of item {item} " in str(told.value)
    assert not path.exists()
    spilled.close()


def test_what_was_never_written_is_not_read_as_zeros(tmp_path):
    _, spilled = pair(tmp_path)
    spilled.write_items(1, torch.ones(1, 4, 3), 0)
    with pytest.raises(GlobeError, match="the rows from 0 on of item 0 are not what was written"):
        spilled.load(0)
