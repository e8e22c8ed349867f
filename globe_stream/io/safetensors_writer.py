"""Safetensors files written in any order of their bytes, after a header planned in full.

Source: the safetensors format description.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from globe_stream.checkpoint.strided import TORCH_DTYPES, StridedMatrix
from globe_stream.errors import GlobeError
from globe_stream.io.safetensors import TensorEntry
from globe_stream.io.shard_writer import PlannedTensor, plan_header

PIECE_BYTES = 8 << 20
"""Bytes that are copied or hashed at a time."""


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
    header = plan_header(planned, metadata or {})
    entries, position = [], len(header)
    for tensor in planned:
        stop = position + tensor.nbytes
        entries.append(TensorEntry(tensor.name, tensor.dtype, tensor.shape, path, position, stop))
        position = stop
    return PlannedFile(path, header, tuple(entries), position)


class OutFile:
    """A planned file being written at `path`; it is complete only after `finish`."""

    def __init__(self, planned: PlannedFile, path: Path) -> None:
        self._size = planned.size
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self.write(0, planned.header)
        os.ftruncate(self._descriptor, planned.size)

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """Put `content` at byte `offset`."""
        view, done = memoryview(content), 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done : done + PIECE_BYTES], offset + done)

    def write_tensor(self, offset: int, values: Tensor) -> None:
        """Put the bytes of `values`, already of the stored dtype, at byte `offset`."""
        self.write(offset, bytes_of(values))

    def write_matrix(self, region: StridedMatrix, matrix: Tensor) -> Tensor:
        """Round `matrix` to the region's dtype and put it in its place; returns it rounded.

        Elements of the region's block that belong to others keep their value, so blocks shared by
        two families may be filled one after the other.
        """
        plain = not region.transposed and region.minor_step == 1 == region.major_step
        if plain and region.columns == region.minor:
            block = torch.empty(region.nbytes, dtype=torch.uint8)
            stored = block.view(TORCH_DTYPES[region.dtype]).view(region.shape)
            stored.copy_(matrix)
            self.write(region.offset, bytes_of(block))
            return stored
        block = torch.empty(region.block_bytes, dtype=torch.uint8)
        read_into(self._descriptor, region.start, bytes_of(block), self._path)
        region.scatter(block, matrix)
        self.write(region.start, bytes_of(block))
        return region.view(block)

    def finish(self) -> str:
        """Make the content durable; returns its sha256."""
        os.fsync(self._descriptor)
        digest = sha256_of(self._path)
        self.close()
        return digest

    def close(self) -> None:
        """Close the file as it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "OutFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def bytes_of(values: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return values.view(-1).view(torch.uint8).numpy().data


def sha256_of(path: Path) -> str:
    """sha256 of a file, read a piece at a time."""
    digest = hashlib.sha256()
    for piece in pieces(path, 0, path.stat().st_size):
        digest.update(piece)
    return digest.hexdigest()


def pieces(path: Path, start: int, stop: int) -> Iterator[memoryview]:
    """The bytes `start` to `stop` of `path`, in views of one buffer that the next overwrites."""
    buffer = memoryview(bytearray(min(PIECE_BYTES, max(1, stop - start))))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for begin in range(start, stop, len(buffer)):
            view = buffer[: min(len(buffer), stop - begin)]
            read_into(descriptor, begin, view, path)
            yield view
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, begin, len(view), os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_into(descriptor: int, start: int, view: memoryview, path: Path) -> None:
    """Fill `view` from byte `start`; GlobeError if the file ends before."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], start + done)
        if count == 0:
            raise GlobeError(f"{path}: ends at byte {start + done:,}; it was shortened meanwhile")
        done += count
