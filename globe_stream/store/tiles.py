"""Large (n, r, d) arrays cut into tiles of rows, resident or spilled to a file.

Banks, their accumulators and proxies are separable over rows of r, so every operation on
them is a loop over tiles. A resident array hands out its own memory; a spilled one is read
into, and written from, one reused tile. A spilled file ends with a checksum of every item's part of
every tile (xxh3 with 64 bits, tile by tile), written with it and compared whenever it is read.
Source: docs/design.md, section Memory.
"""

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from globe_stream.errors import GlobeError
from globe_stream.io.dtypes import bytes_of
from globe_stream.io.files import read_exactly, write_exactly
from globe_stream.io.system_errors import explained

Bounds = tuple[int, int]
_DIGEST_BYTES = 8
_UNWRITTEN = 0
"""In the place of a checksum: nothing was written there."""


def tile_bounds(rows: int, rows_per_tile: int) -> list[Bounds]:
    """The half-open row ranges that tiles of at most `rows_per_tile` rows cut `rows` into."""
    starts = range(0, rows, rows_per_tile)
    return [(start, min(start + rows_per_tile, rows)) for start in starts]


def balanced_rows(rows: int, limit: int) -> int:
    """Rows a tile, at most `limit`, that leave the tiles as equal in height as possible."""
    count = ceil(rows / max(1, min(limit, rows)))
    return ceil(rows / count)


class Tiles:
    """An (n, r, d) array as tiles (n, rows, d), each contiguous.

    `path` given: the data live in that file and one tile of memory is used per `scratch`.
    Otherwise they are resident on `device`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        rows_per_tile: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        path: Path | None = None,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = torch.device(device)
        self.bounds = tile_bounds(shape[1], rows_per_tile)
        self.path = path
        self._tiles: list[Tensor] = []
        self._descriptor = -1
        if path is None:
            self._tiles = [
                torch.zeros(self.tile_shape(t), dtype=dtype, device=device)
                for t in range(len(self.bounds))
            ]
        else:
            with explained(path, "making room for spilled arrays"):
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                os.ftruncate(self._descriptor, self._digest_offset(len(self.bounds), 0))
            self._buffer = torch.empty(self.tile_shape(0), dtype=dtype)

    def __len__(self) -> int:
        return len(self.bounds)

    @property
    def spilled(self) -> bool:
        """Whether the data live in a file."""
        return self.path is not None

    def tile_shape(self, tile: int) -> tuple[int, int, int]:
        """(n, rows, d) of one tile."""
        start, stop = self.bounds[tile]
        return self.shape[0], stop - start, self.shape[2]

    def load(self, tile: int) -> Tensor:
        """Tile `tile` (n, rows, d).

        Resident: the array's own memory. Spilled: a buffer the next `load` overwrites, and
        changes to it count only after `store`. Raises GlobeError, and deletes the file, where it
        does not hold what was written.
        """
        if not self.spilled:
            return self._tiles[tile]
        return self._read(0, self.shape[0], tile).to(self.device)

    def store(self, tile: int, values: Tensor) -> None:
        """Make `values` (n, rows, d) the content of tile `tile`."""
        if self.spilled:
            self._write(0, values, tile)
        elif values is not self._tiles[tile]:
            self._tiles[tile].copy_(values)

    def write_items(self, first: int, items: Tensor, tile: int) -> None:
        """Put `items` (k, rows, d) in tile `tile` at positions first, first + 1, ..."""
        if not self.spilled:
            self._tiles[tile][first : first + len(items)].copy_(items)
            return
        self._write(first, items, tile)

    def items(self, first: int, last: int) -> Tensor:
        """A copy (last - first, r, d) of some items, gathered from all tiles."""
        count, (_, r, d) = last - first, self.shape
        gathered = torch.empty(count, r, d, dtype=self.dtype, device=self.device)
        for tile, (start, stop) in enumerate(self.bounds):
            gathered[:, start:stop] = self._item_rows(first, last, tile)
        return gathered

    def put_items(self, first: int, items: Tensor) -> None:
        """Replace items first, first + 1, ... by `items` (k, r, d)."""
        for tile, (start, stop) in enumerate(self.bounds):
            self.write_items(first, items[:, start:stop], tile)

    def _item_rows(self, first: int, last: int, tile: int) -> Tensor:
        if not self.spilled:
            return self._tiles[tile][first:last]
        return self._read(first, last, tile).to(self.device)

    def __iter__(self) -> Iterator[tuple[Bounds, Tensor]]:
        """Every tile in order, as (row bounds, `load` of it)."""
        for tile, bounds in enumerate(self.bounds):
            yield bounds, self.load(tile)

    def zero(self) -> None:
        """Set every element to zero."""
        for tile in range(len(self)):
            if self.spilled:
                zeros = self._buffer.view(-1)[: self._elements(tile)].zero_()
                self.store(tile, zeros.view(self.tile_shape(tile)))
            else:
                self._tiles[tile].zero_()

    def sync(self) -> None:
        """Make a spilled array's content durable."""
        if self.path is not None:
            with explained(self.path, "writing"):
                os.fsync(self._descriptor)

    def close(self) -> None:
        """Release the memory or the file handle; the file itself stays."""
        self._tiles = []
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self, first: int, last: int, tile: int) -> Tensor:
        """The items of a tile (last - first, rows, d), in the buffer."""
        assert self.path is not None
        _, rows, d = self.tile_shape(tile)
        target = self._buffer.view(-1)[: (last - first) * rows * d]
        content, written = bytes_of(target), np.empty(last - first, "<u8")
        read_exactly(self._descriptor, self._item_offset(tile, first), content, self.path)
        place = self._digest_offset(tile, first)
        read_exactly(self._descriptor, place, written.view(np.uint8).data, self.path)
        wrong = np.flatnonzero(written != _digests(content, last - first))
        if len(wrong):
            self.path.unlink(missing_ok=True)
            raise GlobeError(
                f"{self.path}: the rows from {self.bounds[tile][0]} on of item {first + wrong[0]} "
                "are not what was written. The disk damaged them; the file is deleted, and the "
                "same command makes it again"
            )
        return target.view(last - first, rows, d)

    def _write(self, first: int, values: Tensor, tile: int) -> None:
        assert self.path is not None
        source = values.to("cpu", self.dtype).contiguous()
        content = bytes_of(source)
        digests = _digests(content, len(source)).view(np.uint8).data
        write_exactly(self._descriptor, self._item_offset(tile, first), content, self.path)
        write_exactly(self._descriptor, self._digest_offset(tile, first), digests, self.path)

    def _elements(self, tile: int) -> int:
        n, rows, d = self.tile_shape(tile)
        return n * rows * d

    def _item_offset(self, tile: int, item: int) -> int:
        """Where the rows of `item` in `tile` begin, in bytes."""
        n, _, d = self.shape
        start, stop = self.bounds[tile]
        return (n * start + item * (stop - start)) * d * self.dtype.itemsize

    def _digest_offset(self, tile: int, item: int) -> int:
        """Where the checksum of the rows of `item` in `tile` is; after the last tile, the end."""
        n, r, d = self.shape
        return n * r * d * self.dtype.itemsize + (tile * n + item) * _DIGEST_BYTES


def _digests(content: memoryview, count: int) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """The checksums (count,) of as many equal parts of `content`."""
    size = len(content) // max(1, count)
    parts = (content[k * size : (k + 1) * size] for k in range(count))
    found = [xxhash.xxh3_64_intdigest(part) or _UNWRITTEN + 1 for part in parts]
    return np.array(found, "<u8")
