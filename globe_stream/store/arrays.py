"""The arrays of a run: every chunk checksummed, present, and written by one writer.

Source: docs/design.md, section Run directory.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from globe_stream.errors import GlobeError, option
from globe_stream.store.tiles import Tiles
from globe_stream.store.zarr_array import Damaged, Range, ZarrArray


@dataclass(frozen=True)
class StoredCopy:
    """The array at `path` of another run, taken over file by file."""

    path: Path


Storable = np.ndarray[Any, Any] | Tensor | Tiles | StoredCopy
Loader = Callable[[str], Path]
"""Where the stored array of a name is; see `read`."""
CHUNK_BYTES = 64 << 20


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
    array = ZarrArray.create(path, values.shape, chunks, str(values.dtype))
    for number, index in enumerate(array.indices):
        part = values[number * chunks[0] : (number + 1) * chunks[0]] if chunks else values
        array.write_chunk(index, part)


def open_checked(path: Path) -> ZarrArray:
    """The array at `path`, read-only, after seeing that none of its chunks is missing.

    Raises GlobeError naming the array when it is absent or has lost chunks.
    """
    try:
        array = ZarrArray.open(path)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise GlobeError(
            f"{path}: the array is missing or unreadable ({error}). "
            f"Restore it or start over with {option('fresh')}"
        ) from error
    found = [array.file(index).exists() for index in array.indices]
    if not all(found):
        raise GlobeError(
            f"{path}: {found.count(False)} of {len(found)} chunks are "
            f"missing. Restore the run directory or start over with {option('fresh')}"
        )
    return array


def read_part(array: ZarrArray, *ranges: Range) -> np.ndarray[Any, Any]:
    """The part of `array` within `ranges`; a damaged chunk is a GlobeError naming the array."""
    try:
        return array.read(*ranges)
    except Damaged as error:
        raise damaged(array.path, error) from error


def damaged(path: Path, error: Damaged) -> GlobeError:
    """What is raised for `path`, an array or one of its chunks."""
    return GlobeError(
        f"{path}: damaged on disk ({error}). "
        f"Restore the run directory or start over with {option('fresh')}"
    )


def read(path: Path) -> np.ndarray[Any, Any]:
    """The whole array at `path`."""
    array = open_checked(path)
    return read_part(array, *((0, side) for side in array.shape))


def read_into(path: Path, tiles: Tiles) -> None:
    """Fill `tiles` from the array at `path` of the same shape, a tile at a time."""
    array = open_checked(path)
    if tuple(array.shape) != tuple(tiles.shape):
        raise GlobeError(f"{path}: shape {array.shape}, expected {tiles.shape}")
    for tile, (start, stop) in enumerate(tiles.bounds):
        tiles.store(tile, _rows(array, start, stop))


class StoredTiles:
    """A committed (n, r, d) array read one tile of rows at a time."""

    def __init__(self, path: Path, like: Tiles) -> None:
        self._array = open_checked(path)
        self._bounds, self._device = like.bounds, like.device

    def load(self, tile: int) -> Tensor:
        """Tile `tile` (n, rows, d)."""
        start, stop = self._bounds[tile]
        return _rows(self._array, start, stop).to(self._device)


def _rows(array: ZarrArray, start: int, stop: int) -> Tensor:
    """The rows `start` to `stop` (n, stop - start, d) of an array (n, r, d)."""
    n, _, d = array.shape
    return torch.from_numpy(read_part(array, (0, n), (start, stop), (0, d)))


def _write_tiles(path: Path, tiles: Tiles) -> None:
    n, _, d = tiles.shape
    rows = tiles.tile_shape(0)[1]
    dtype = str(tiles.dtype).removeprefix("torch.")
    array = ZarrArray.create(path, tiles.shape, (n, rows, d), dtype)
    for (start, _), values in tiles:
        array.write_chunk((0, start // rows, 0), values.cpu().numpy())


def _leading_chunks(values: np.ndarray[Any, Any]) -> tuple[int, ...]:
    if values.ndim == 0:
        return ()
    row = max(1, values.nbytes // max(1, values.shape[0]))
    return max(1, min(values.shape[0], CHUNK_BYTES // row)), *(max(1, n) for n in values.shape[1:])
