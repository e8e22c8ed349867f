"""Atoms of a bank read straight from a run's chunks, so that no more than is asked for is held.

The store keeps banks as uncompressed chunks that end in a crc32c, so an atom, or an atom's rows in
a tiled bank, is one contiguous byte range of a chunk.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from globe_stream.errors import GlobeError
from globe_stream.io.closing import Closing
from globe_stream.io.dtypes import bytes_of
from globe_stream.io.files import read_exactly
from globe_stream.store import arrays
from globe_stream.store.zarr_array import Damaged, check_chunk


class StoredBank(Closing):
    """The bank (m, r, d) float32 of one group; `resident` keeps all of it in memory.

    Memory: m r d elements when resident, one atom otherwise. Every chunk's checksum is verified
    once, on opening. Raises GlobeError when a chunk is missing or damaged.
    """

    def __init__(self, path: Path, *, resident: bool) -> None:
        self.shape, self._chunks, names = _layout(path)
        self._path = path
        self._files = {start: os.open(name, os.O_RDONLY) for start, name in names.items()}
        for start, name in names.items():
            _check(self._files[start], name)
        self._buffer = torch.empty(self.shape if resident else (1, *self.shape[1:]))
        self._resident = resident
        if resident:
            for atom in range(self.shape[0]):
                self._read(atom, self._buffer[atom])

    def atom(self, number: int) -> Tensor:
        """Atom `number` (r, d); when not resident, a buffer that the next call overwrites."""
        if self._resident:
            return self._buffer[number]
        self._read(number, self._buffer[0])
        return self._buffer[0]

    @property
    def row_ranges(self) -> list[tuple[int, int]]:
        """The half-open ranges of rows that its chunks hold."""
        r, rows = self.shape[1], self._chunks[1]
        return [(first, min(first + rows, r)) for first in range(0, r, rows)]

    def rows(self, first: int, last: int) -> Tensor:
        """The rows of one of `row_ranges` of every atom (m, last - first, d), a copy."""
        m, _, d = self.shape
        atoms, rows, _ = self._chunks
        values = torch.empty(m, last - first, d)
        for number, target in enumerate(values):
            offset = (number % atoms) * rows * d * target.itemsize
            chunk = self._files[number // atoms, first // rows]
            read_exactly(chunk, offset, bytes_of(target), self._path)
        return values

    def close(self) -> None:
        """Close the files and give the memory back."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}
        self._buffer = torch.empty(0)

    def _read(self, number: int, out: Tensor) -> None:
        """Atom `number` into `out` (r, d), chunk by chunk of rows."""
        atoms, rows, d = self._chunks
        for first in range(0, self.shape[1], rows):
            target = out[first : first + rows]
            offset = (number % atoms) * rows * d * out.itemsize
            chunk = self._files[number // atoms, first // rows]
            read_exactly(chunk, offset, bytes_of(target), self._path)


def _layout(
    path: Path,
) -> tuple[tuple[int, int, int], tuple[int, int, int], dict[tuple[int, int], Path]]:
    """Shape, chunk shape and chunk files by (chunk of atoms, chunk of rows)."""
    array = arrays.open_checked(path)
    m, r, d = array.shape
    atoms, rows, width = array.chunks
    whole_rows = width == d and array.dtype == "float32"
    if not whole_rows:
        raise GlobeError(f"{path}: not a bank: {array.dtype} in chunks of {width} of {d} columns")
    files = {(index[0], index[1]): array.file(index) for index in array.indices}
    return (m, r, d), (atoms, rows, width), files


def _check(descriptor: int, name: Path) -> None:
    try:
        check_chunk(descriptor)
    except Damaged as error:
        raise arrays.damaged(name, error) from error
