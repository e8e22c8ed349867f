"""Zarr arrays of a run: exact round trips; lost, damaged and misshapen data are errors."""

import json
from itertools import product

import numpy as np
import pytest
import support
import torch
import xxhash
import zarr
from zarr.codecs import Crc32cCodec

from globe_stream.errors import GlobeError
from globe_stream.store import arrays
from globe_stream.store.tiles import Tiles
from globe_stream.store.zarr_array import ZarrArray


def random_tiles(shape=(3, 10, 4), rows=4, path=None):
    tiles = Tiles(shape, rows, path=path)
    tiles.put_items(0, torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    return tiles


def chunk_files(path):
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json")


@pytest.mark.parametrize(
    "values",
    [
        np.arange(7, dtype=np.int32),
        np.float64(2.5) * np.ones((3, 2)),
        np.zeros((2, 3, 4), "f4"),
        np.array(4.25),
        np.zeros(0, np.int32),
        np.zeros((0, 3), "f4"),
    ],
)
def test_round_trip(tmp_path, values):
    arrays.write(tmp_path / "a", values)
    found = arrays.read(tmp_path / "a")
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


CASES = {
    "scalar": (np.array(4.25), ()),
    "empty": (np.zeros((0, 3), "f4"), (1, 3)),
    "bytes": (np.arange(48, dtype="u1").reshape(3, 16), (3, 16)),
    "integers": (np.arange(-3, 4, dtype="i8"), (3,)),
    "partial chunks": (np.random.default_rng(0).random((3, 10, 4), "f4"), (2, 4, 4)),
}


def by_the_library(path, values, chunks):
    """The same array written by zarr, and the checksum of its description that we add."""
    array = zarr.create_array(
        str(path), shape=values.shape, chunks=chunks, dtype=str(values.dtype), filters=None,
        compressors=[Crc32cCodec()], config={"write_empty_chunks": True}, zarr_format=3,
    )  # fmt: skip
    described = json.dumps(json.loads((path / "zarr.json").read_text()), sort_keys=True)
    array.update_attributes({"check": xxhash.xxh3_64_hexdigest(described.encode())})
    array[...] = values


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_those_of_the_zarr_library(tmp_path, case):
    values, chunks = CASES[case]
    own = ZarrArray.create(tmp_path / "own", values.shape, chunks, str(values.dtype))
    for index in own.indices:
        own.write_chunk(index, values[tuple(slice(*part) for part in own.region(index))])
    by_the_library(tmp_path / "zarr", values, chunks)
    assert support.tree(tmp_path / "own") == support.tree(tmp_path / "zarr")
    np.testing.assert_array_equal(arrays.read(tmp_path / "zarr"), values)
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "own"), mode="r")[...], values)


def test_any_part_is_what_zarr_reads(tmp_path):
    values, chunks = CASES["partial chunks"]
    by_the_library(tmp_path / "a", values, chunks)
    array, oracle = ZarrArray.open(tmp_path / "a"), zarr.open_array(str(tmp_path / "a"), mode="r")
    for ranges in product([(0, 3), (1, 3), (2, 2)], [(0, 10), (3, 9), (4, 8)], [(0, 4), (1, 2)]):
        part = oracle[tuple(slice(*one) for one in ranges)]
        np.testing.assert_array_equal(array.read(*ranges), part)


def test_large_arrays_are_chunked_along_the_first_axis(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 100)
    values = np.random.default_rng(0).random((23, 5))
    arrays.write(tmp_path / "a", values)
    assert len(chunk_files(tmp_path / "a")) == 12  # 40 bytes a row, two rows a chunk
    np.testing.assert_array_equal(arrays.read(tmp_path / "a"), values)


def test_tiles_keep_their_tiling_as_chunks(tmp_path):
    tiles = random_tiles(path=tmp_path / "spill")
    arrays.write(tmp_path / "bank", tiles)
    assert zarr.open_array(str(tmp_path / "bank"), mode="r").chunks == (3, 4, 4)
    back = Tiles(tiles.shape, 3)
    arrays.read_into(tmp_path / "bank", back)
    assert torch.equal(back.items(0, 3), tiles.items(0, 3))
    stored = arrays.StoredTiles(tmp_path / "bank", tiles)
    assert torch.equal(torch.cat([stored.load(k) for k in range(3)], 1), tiles.items(0, 3))


def test_every_array_is_zarr_3_with_checksums_and_without_compression(tmp_path):
    arrays.write(tmp_path / "a", np.ones(5))
    described = json.loads((tmp_path / "a" / "zarr.json").read_text())
    assert described["zarr_format"] == 3
    assert [codec["name"] for codec in described["codecs"]] == ["bytes", "crc32c"]


def test_a_chunk_of_zeros_is_written_all_the_same(tmp_path):
    arrays.write(tmp_path / "a", np.zeros(5))
    assert len(chunk_files(tmp_path / "a")) == 1


@pytest.mark.parametrize("which", [0, -1])
def test_a_missing_chunk_is_an_error(tmp_path, which):
    tiles = random_tiles()
    arrays.write(tmp_path / "bank", tiles)
    chunk_files(tmp_path / "bank")[which].unlink()
    with pytest.raises(GlobeError, match="bank: 1 of 3 chunks are missing"):
        arrays.read(tmp_path / "bank")
    with pytest.raises(GlobeError, match="bank: 1 of 3 chunks are missing"):
        arrays.read_into(tmp_path / "bank", tiles)
    with pytest.raises(GlobeError, match="bank: 1 of 3 chunks are missing"):
        arrays.StoredTiles(tmp_path / "bank", tiles)


@pytest.mark.parametrize("place", [0, 17, -1])
def test_a_flipped_bit_is_an_error(tmp_path, place):
    tiles = random_tiles()
    arrays.write(tmp_path / "bank", tiles)
    stored = arrays.StoredTiles(tmp_path / "bank", tiles)
    file = chunk_files(tmp_path / "bank")[1]
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(GlobeError, match="bank: damaged on disk"):
        arrays.read(tmp_path / "bank")
    with pytest.raises(GlobeError, match="bank: damaged on disk"):
        arrays.read_into(tmp_path / "bank", tiles)
    with pytest.raises(GlobeError, match="bank: damaged on disk"):
        stored.load(1)


def test_a_shortened_chunk_is_an_error(tmp_path):
    arrays.write(tmp_path / "a", np.arange(50.0))
    file = chunk_files(tmp_path / "a")[0]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(GlobeError, match="a: damaged on disk"):
        arrays.read(tmp_path / "a")


def test_a_missing_array_and_a_damaged_description_are_errors(tmp_path):
    with pytest.raises(GlobeError, match="missing or unreadable"):
        arrays.read(tmp_path / "nothing")
    arrays.write(tmp_path / "a", np.arange(5.0))
    (tmp_path / "a" / "zarr.json").write_text("{")
    with pytest.raises(GlobeError, match="missing or unreadable"):
        arrays.read(tmp_path / "a")


def test_another_shape_is_an_error(tmp_path):
    arrays.write(tmp_path / "bank", random_tiles())
    with pytest.raises(GlobeError, match="shape"):
        arrays.read_into(tmp_path / "bank", Tiles((3, 11, 4), 4))


def test_a_flipped_bit_of_the_metadata_is_noticed(tmp_path):
    """Wherever it is: in a shape, a type, a key or the name of a codec."""
    path = tmp_path / "a"
    arrays.write(path, torch.arange(12.0).view(3, 4))
    file = path / "zarr.json"
    whole = file.read_bytes()
    for bit in range(5, 8 * len(whole), 41):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(GlobeError, match="missing or unreadable") as raised:
            arrays.read(path)
        assert len(str(raised.value).splitlines()) == 1
    file.write_bytes(whole)
    assert arrays.read(path).sum() == 66
