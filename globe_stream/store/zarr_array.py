"""Zarr arrays as runs have them: version 3, uncompressed chunks that each end in a crc32c.

What is written has the bytes that the zarr library writes. The library itself hands each array to
other threads several times, which takes longer than computing the small arrays of an epoch, and
reads a chunk into twice its memory; the tests compare with it.
Source: Zarr core specification 3.0: regular grid, default chunk keys, codecs bytes and crc32c.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import xxhash

from globe_stream.io import files
from globe_stream.io.system_errors import explained

Values = np.ndarray[Any, Any]
Index = tuple[int, ...]
Range = tuple[int, int]

METADATA = "zarr.json"
_CRC_BYTES = 4
_CHECK = "check"
_PIECE = 4 << 20
_WRONG = "its checksum does not match"


class Damaged(Exception):
    """A chunk is not what was written; says how it is seen."""


@dataclass(frozen=True)
class ZarrArray:
    """An array in the folder `path`, in chunks of the shape `chunks` (the last may be partial)."""

    path: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def create(
        cls, path: Path, shape: Sequence[int], chunks: Sequence[int], dtype: str
    ) -> "ZarrArray":
        """Describe a new array; `write_chunk` is then to be called for every chunk."""
        array = cls(path, tuple(shape), tuple(chunks), np.dtype(dtype))
        path.mkdir(parents=True, exist_ok=True)
        described = array._described()
        described["attributes"] = {_CHECK: _digest(described)}
        files.write_new(path / METADATA, _text(described))
        return array

    @classmethod
    def open(cls, path: Path) -> "ZarrArray":
        """The array at `path`; an OSError or ValueError when there is none that can be read.

        Chunks have checksums of their own; what says how to read them has one among the attributes.
        """
        found = json.loads((path / METADATA).read_bytes())
        attributes = found.get("attributes") if isinstance(found, dict) else None
        if not isinstance(attributes, dict) or attributes.pop(_CHECK, None) != _digest(found):
            raise ValueError(f"{METADATA} does not have its checksum")
        chunks = found["chunk_grid"]["configuration"]["chunk_shape"]
        array = cls(path, tuple(found["shape"]), tuple(chunks), np.dtype(found["data_type"]))
        if found != array._described():
            raise ValueError(f"{METADATA} is not that of an array with plain chunks")
        return array

    @property
    def indices(self) -> Iterator[Index]:
        """The index of every chunk."""
        pairs = zip(self.shape, self.chunks, strict=True)
        return product(*(range(-(-side // chunk)) for side, chunk in pairs))

    def file(self, index: Index) -> Path:
        """Where the chunk `index` is."""
        return self.path.joinpath("c", *map(str, index))

    def region(self, index: Index) -> tuple[Range, ...]:
        """The half-open ranges, one for each side, that the chunk `index` holds."""
        sides = zip(index, self.chunks, self.shape, strict=True)
        return tuple((k * chunk, min((k + 1) * chunk, side)) for k, chunk, side in sides)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.dtype.itemsize * prod(self.shape)

    def write_chunk(self, index: Index, values: Values) -> None:
        """Write the part of the array that the chunk `index` holds; it is filled up with zeros."""
        if values.shape != self.chunks:
            whole = np.zeros(self.chunks, self.dtype)
            whole[tuple(slice(side) for side in values.shape)] = values
            values = whole
        content = np.ascontiguousarray(values, self.dtype).reshape(-1).view(np.uint8)
        path = self.file(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_new(path, content.data, _checksum(content))

    def read(self, *ranges: Range) -> Values:
        """The part within half-open `ranges`, one for each side; Damaged for a wrong chunk."""
        covered = [
            range(start // chunk, -(-stop // chunk))
            for (start, stop), chunk in zip(ranges, self.chunks, strict=True)
        ]
        wanted = tuple(stop - start for start, stop in ranges)
        out = None
        for index in product(*covered):
            held = self.region(index)
            common = [
                (max(one[0], other[0]), min(one[1], other[1]))
                for one, other in zip(ranges, held, strict=True)
            ]
            part = self._chunk(index)[_within(common, held)]
            if part.shape == wanted:
                return part
            out = np.empty(wanted, self.dtype) if out is None else out
            out[_within(common, ranges)] = part
        return np.empty(wanted, self.dtype) if out is None else out

    def _chunk(self, index: Index) -> Values:
        path, size = self.file(index), self.dtype.itemsize * prod(self.chunks)
        values = np.empty(self.chunks, self.dtype)
        stored = bytearray(_CRC_BYTES)
        with explained(path, "reading"):
            descriptor = os.open(path, os.O_RDONLY)
        try:
            if os.fstat(descriptor).st_size != size + _CRC_BYTES:
                raise Damaged(f"{path.name}: {size + _CRC_BYTES:,} bytes were expected")
            content = values.reshape(-1).view(np.uint8)
            files.read_exactly(descriptor, 0, content.data, path)
            files.read_exactly(descriptor, size, memoryview(stored), path)
        finally:
            os.close(descriptor)
        if _checksum(content) != stored:
            raise Damaged(_WRONG)
        return values

    def _described(self) -> dict[str, Any]:
        """What zarr.json says, but for the checksum."""
        zero = self.dtype.type(0).item()
        coding: dict[str, Any] = {"name": "bytes"}
        if self.dtype.itemsize > 1:
            coding["configuration"] = {"endian": "little"}
        return {
            "shape": list(self.shape),
            "data_type": self.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(self.chunks)},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": zero,
            "codecs": [coding, {"name": "crc32c"}],
            "attributes": {},
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }


def make_group(path: Path) -> None:
    """Make the folder `path` a Zarr group, unless it is one."""
    path.mkdir(parents=True, exist_ok=True)
    if not (path / METADATA).exists():
        group = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
        files.write_bytes(path / METADATA, _text(group))


def check_chunk(descriptor: int) -> None:
    """Raise Damaged unless an open chunk file ends in the checksum of what it holds.

    Memory: a piece of it at a time.
    """
    size = os.fstat(descriptor).st_size - _CRC_BYTES
    starts = range(0, size, _PIECE)
    pieces = (os.pread(descriptor, min(_PIECE, size - start), start) for start in starts)
    if _crc32c(pieces) != os.pread(descriptor, _CRC_BYTES, size):
        raise Damaged(_WRONG)


def _checksum(content: Values) -> bytes:
    """The crc32c that follows the bytes (n,) uint8 of a chunk."""
    return _crc32c(content[start : start + _PIECE] for start in range(0, len(content), _PIECE))


def _crc32c(pieces: Iterable[bytes | Values]) -> bytes:
    value = 0
    for piece in pieces:
        value = google_crc32c.extend(value, piece)
    return value.to_bytes(_CRC_BYTES, "little")


def _within(ranges: Sequence[Range], outer: Sequence[Range]) -> tuple[slice, ...]:
    """Where `ranges` are in an array that holds the ranges `outer`."""
    pairs = zip(ranges, outer, strict=True)
    return tuple(slice(start - first, stop - first) for (start, stop), (first, _) in pairs)


def _digest(metadata: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(metadata, sort_keys=True).encode())


def _text(metadata: Any) -> bytes:
    return json.dumps(metadata, indent=2).encode()
