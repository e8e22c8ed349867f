"""Large (n, r, d) arrays cut into tiles of rows, resident or spilled to a file.

Banks, their accumulators and proxies are separable over rows of r, so every operation on
them is a loop over tiles. A resident array hands out its own memory; a spilled one is read
into, and written from, one reused tile. Source: docs/design.md, section Memory.
"""

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from globe_stream.io.dtypes import bytes_of
from globe_stream.io.files import read_exactly, write_exactly
from globe_stream.io.system_errors import explained

Bounds = tuple[int, int]


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
                os.ftruncate(self._descriptor, self._offset(len(self.bounds)))
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
        changes to it count only after `store`.
        """
        if not self.spilled:
            return self._tiles[tile]
        target = self._buffer.view(-1)[: self._elements(tile)]
        self._read(target, self._offset(tile))
        return target.view(self.tile_shape(tile)).to(self.device)

    def store(self, tile: int, values: Tensor) -> None:
        """Make `values` (n, rows, d) the content of tile `tile`."""
        if self.spilled:
            self._write(values, self._offset(tile))
        elif values is not self._tiles[tile]:
            self._tiles[tile].copy_(values)

    def write_items(self, first: int, items: Tensor, tile: int) -> None:
        """Put `items` (k, rows, d) in tile `tile` at positions first, first + 1, ..."""
        if not self.spilled:
            self._tiles[tile][first : first + len(items)].copy_(items)
            return
        item_bytes = self._elements(tile) // self.shape[0] * self.dtype.itemsize
        self._write(items, self._offset(tile) + first * item_bytes)

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
        _, rows, d = self.tile_shape(tile)
        target = self._buffer.view(-1)[: (last - first) * rows * d]
        skipped = first * rows * d * self.dtype.itemsize
        self._read(target, self._offset(tile) + skipped)
        return target.view(last - first, rows, d).to(self.device)

    def __iter__(self) -> Iterator[tuple[Bounds, Tensor]]:
        """Every tile in order, as (row bounds, `load` of it)."""
        for tile, bounds in enumerate(self.bounds):
            yield bounds, self.load(tile)

    def zero(self) -> None:
        """Set every element to zero."""
        for tile in range(len(self)):
            values = self.load(tile).zero_()
            self.store(tile, values)

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

    def _read(self, target: Tensor, offset: int) -> None:
        assert self.path is not None
        read_exactly(self._descriptor, offset, bytes_of(target), self.path)

    def _write(self, values: Tensor, offset: int) -> None:
        assert self.path is not None
        source = values.to("cpu", self.dtype).contiguous()
        write_exactly(self._descriptor, offset, bytes_of(source), self.path)

    def _elements(self, tile: int) -> int:
        n, rows, d = self.tile_shape(tile)
        return n * rows * d

    def _offset(self, tile: int) -> int:
        row = self.bounds[tile][0] if tile < len(self.bounds) else self.shape[1]
        return self.shape[0] * row * self.shape[2] * self.dtype.itemsize
