"""Safetensors files written in any order of their bytes, after a header planned in full.

Source: the safetensors format description.
"""

import json
import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from globe_stream.errors import GlobeError
from globe_stream.io import files
from globe_stream.io.closing import Closing
from globe_stream.io.dtypes import ITEM_BYTES, bytes_of
from globe_stream.io.safetensors import PREFIX_BYTES, TensorEntry
from globe_stream.io.system_errors import explained


class PlannedTensor(NamedTuple):
    """A tensor to be written: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class PlannedFile:
    """A file whose header is known and whose bytes are still to be written."""

    path: Path
    header: bytes
    entries: tuple[TensorEntry, ...]
    size: int


def plan_file(
    path: Path,
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
) -> PlannedFile:
    """Lay out `tensors` (name, dtype, shape), in their order and without gaps, in `path`."""
    planned = [PlannedTensor(*tensor) for tensor in tensors]
    header = _header(planned, metadata or {})
    entries, position = [], len(header)
    for tensor in planned:
        stop = position + tensor.nbytes
        entries.append(TensorEntry(tensor.name, tensor.dtype, tensor.shape, path, position, stop))
        position = stop
    return PlannedFile(path, header, tuple(entries), position)


def _header(tensors: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    """The length prefix and header of a file that holds `tensors` in this order."""
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for tensor in tensors:
        stop = position + tensor.nbytes
        fields[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, stop],
        }
        position = stop
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % PREFIX_BYTES)
    return len(text).to_bytes(PREFIX_BYTES, "little") + text


class SafetensorsWriter(Closing):
    """A planned file being written at `path`; it is complete only after `finish`."""

    def __init__(self, planned: PlannedFile, path: Path) -> None:
        self._size = planned.size
        self._path = path
        self._written: list[tuple[int, int]] = []
        with explained(path, "writing"):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                self.write(0, planned.header)
                os.ftruncate(self._descriptor, planned.size)
            except BaseException:
                self.close()
                raise

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """Put `content` at byte `offset`."""
        size = memoryview(content).nbytes
        if offset + size > self._size:
            raise ValueError(f"{self._path}: {offset + size - self._size} bytes beyond the plan")
        files.write_exactly(self._descriptor, offset, content, self._path)
        if size:
            self._mark(offset, offset + size)

    def write_tensor(self, offset: int, values: Tensor) -> None:
        """Put the bytes of `values`, already of the stored dtype, at byte `offset`."""
        self.write(offset, bytes_of(values.contiguous()))

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with what lies at byte `offset` so far."""
        files.read_exactly(self._descriptor, offset, view, self._path)

    def finish(self) -> None:
        """Make the content durable and close the file.

        Raises GlobeError when a part of it was never written.
        """
        if self._written != [(0, self._size)]:
            raise GlobeError(
                f"{self._path}: only the bytes {self._written} of {self._size:,} were written. "
                "This is a defect of globe-stream; please report it"
            )
        with explained(self._path, "writing"):
            os.fsync(self._descriptor)
        self.close()

    def close(self) -> None:
        """Close the file as it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _mark(self, start: int, stop: int) -> None:
        """Add `start` to `stop` to the sorted, disjoint spans written so far."""
        spans = self._written
        first = bisect_left(spans, start, key=lambda span: span[1])
        last = bisect_right(spans, stop, key=lambda span: span[0])
        if first < last:
            start, stop = min(start, spans[first][0]), max(stop, spans[last - 1][1])
        spans[first:last] = [(start, stop)]


@contextmanager
def writing(planned: PlannedFile) -> Iterator[SafetensorsWriter]:
    """Write the file `planned.path`: whole when the block ends, or not at all.

    Raises InputError when the disk has not enough room, before anything is written or on the way.
    """
    path = planned.path
    files.require_free(path.parent, planned.size, path.name)
    partial = path.with_name(path.name + files.PARTIAL)
    with explained(path, "writing"):
        try:
            with SafetensorsWriter(planned, partial) as file:
                yield file
                file.finish()
            files.publish(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
