"""Zarr v3 arrays of a run: every chunk checksummed, present, and written by one writer.

Source: docs/design.md, section Run directory.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
import zarr
from torch import Tensor
from zarr.codecs import Crc32cCodec

from globe_stream.errors import GlobeError, option
from globe_stream.store.tiles import Tiles


@dataclass(frozen=True)
class StoredCopy:
    """The array at `path` of another run, taken over file by file."""

    path: Path


Storable = np.ndarray[Any, Any] | Tensor | Tiles | StoredCopy
Loader = Callable[[str], Path]
"""Where the stored array of a name is; see `read`."""
CHUNK_BYTES = 64 << 20
_METADATA, _CHECK = "zarr.json", "check"


def nbytes(source: Storable) -> int:
    """Bytes that `source` takes on disk, chunk checksums aside."""
    if isinstance(source, StoredCopy):
        return sum(file.stat().st_size for file in source.path.rglob("*") if file.is_file())
    return prod(source.shape) * source.dtype.itemsize


def write(path: Path, source: Storable) -> None:
    """Write `source` as one Zarr array at `path`, chunk by chunk.

    Tiles keep their tiling as chunks; other arrays are chunked along the first axis.
    """
    if isinstance(source, StoredCopy):
        shutil.copytree(source.path, path)
        return
    if isinstance(source, Tiles):
        _write_tiles(path, source)
        return
    values = source.detach().cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
    chunks = _leading_chunks(values)
    array = _create(path, values.shape, chunks, str(values.dtype))
    if values.ndim == 0:
        array[...] = values
        return
    for start in range(0, values.shape[0], chunks[0]):
        array[start : start + chunks[0]] = values[start : start + chunks[0]]


def open_checked(path: Path) -> "zarr.Array[Any]":
    """The Zarr array at `path`, read-only, after seeing that none of its chunks is missing.

    Raises GlobeError naming the array when it is absent or has lost chunks, which Zarr itself
    would read back as zeros.
    """
    try:
        _require_metadata(path)
        array = zarr.open_array(str(path), mode="r", zarr_format=3)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise GlobeError(
            f"{path}: the array is missing or unreadable ({error}). "
            f"Restore it or start over with {option('fresh')}"
        ) from error
    if array.nchunks_initialized != array.nchunks:
        raise GlobeError(
            f"{path}: {array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks are "
            f"missing. Restore the run directory or start over with {option('fresh')}"
        )
    return array


def read_slice(array: "zarr.Array[Any]", selection: Any) -> np.ndarray[Any, Any]:
    """`array[selection]`; a chunk that fails its checksum is a GlobeError naming the array."""
    try:
        return np.asarray(array[selection])
    except ValueError as error:
        raise GlobeError(
            f"{array.store_path}: damaged on disk ({error}). "
            f"Restore the run directory or start over with {option('fresh')}"
        ) from error


def read(path: Path) -> np.ndarray[Any, Any]:
    """The whole array at `path`."""
    return read_slice(open_checked(path), ...)


def read_into(path: Path, tiles: Tiles) -> None:
    """Fill `tiles` from the array at `path` of the same shape, a tile at a time."""
    array = open_checked(path)
    if tuple(array.shape) != tuple(tiles.shape):
        raise GlobeError(f"{path}: shape {array.shape}, expected {tiles.shape}")
    for tile, (start, stop) in enumerate(tiles.bounds):
        block = read_slice(array, (slice(None), slice(start, stop), slice(None)))
        tiles.store(tile, torch.from_numpy(block))


class StoredTiles:
    """A committed (n, r, d) array read one tile of rows at a time."""

    def __init__(self, path: Path, like: Tiles) -> None:
        self._array = open_checked(path)
        self._bounds, self._device = like.bounds, like.device

    def load(self, tile: int) -> Tensor:
        """Tile `tile` (n, rows, d)."""
        start, stop = self._bounds[tile]
        block = read_slice(self._array, (slice(None), slice(start, stop), slice(None)))
        return torch.from_numpy(block).to(self._device)


def _write_tiles(path: Path, tiles: Tiles) -> None:
    n, _, d = tiles.shape
    rows = tiles.tile_shape(0)[1]
    array = _create(path, tiles.shape, (n, rows, d), str(tiles.dtype).removeprefix("torch."))
    for (start, stop), values in tiles:
        array[:, start:stop, :] = values.cpu().numpy()


def _leading_chunks(values: np.ndarray[Any, Any]) -> tuple[int, ...]:
    if values.ndim == 0:
        return ()
    row = max(1, values.nbytes // max(1, values.shape[0]))
    return max(1, min(values.shape[0], CHUNK_BYTES // row)), *(max(1, n) for n in values.shape[1:])


def _create(
    path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str
) -> "zarr.Array[Any]":
    array = zarr.create_array(
        str(path),
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        filters=None,
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
        zarr_format=3,
    )
    array.update_attributes({_CHECK: _digest(json.loads((path / _METADATA).read_bytes()))})
    return array


def _require_metadata(path: Path) -> None:
    """Raise ValueError unless the metadata of the array at `path` are as they were written.

    Chunks have checksums of their own; what says how to read them has one among the attributes.
    """
    found = json.loads((path / _METADATA).read_bytes())
    attributes = found.get("attributes") if isinstance(found, dict) else None
    if not isinstance(attributes, dict) or attributes.pop(_CHECK, None) != _digest(found):
        raise ValueError(f"{_METADATA} does not have its checksum")


def _digest(metadata: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(metadata, sort_keys=True).encode())
