"""A safetensors file written from front to back, with one tensor's bytes in memory at most.

The header is planned first, so every tensor's place is known before its bytes are. The file lies
beside its final name as `.partial` until it is complete and on the disk; only then is it renamed.
"""

import errno
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from globe_stream.errors import InputError
from globe_stream.formatting import format_bytes
from globe_stream.io.files import FULL
from globe_stream.io.safetensors import ITEM_BYTES, PREFIX_BYTES

PARTIAL = ".partial"
_SPARE_BYTES = 2**20  # file system records


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to be written: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def plan_header(tensors: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    """The length prefix and header of a file that holds `tensors` in this order."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
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


def file_bytes(tensors: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> int:
    """Size of the file that holds `tensors`."""
    return len(plan_header(tensors, metadata)) + sum(tensor.nbytes for tensor in tensors)


def require_space(folder: Path, needed: int) -> None:
    """InputError unless the disk of the existing `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise InputError(
            f"{folder}: the disk is too full: {format_bytes(needed)} are needed, "
            f"{format_bytes(free)} are free. Free some space or choose another folder."
        )


class ShardWriter:
    """Writes the file `path` with `tensors` in order; a context manager.

    `append` takes the bytes, in pieces of any size; leaving the context checks that all were
    given, flushes them to the disk and renames the file. After an exception nothing is left.
    """

    def __init__(
        self,
        path: Path,
        tensors: Sequence[PlannedTensor],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        header = plan_header(tensors, metadata or {})
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL)
        self._missing = sum(tensor.nbytes for tensor in tensors)
        require_space(path.parent, len(header) + self._missing)
        self._file = self._guard(lambda: self._partial.open("wb", buffering=0))
        try:
            self._write(memoryview(header))
        except BaseException:
            self._discard()
            raise

    def append(self, data: Tensor | bytes | memoryview) -> None:
        """Write the next bytes: those of a CPU tensor in row-major order, or as they are."""
        view = memoryview(_bytes_of(data) if isinstance(data, Tensor) else data).cast("B")
        if view.nbytes > self._missing:
            raise ValueError(f"{view.nbytes - self._missing} bytes more than the header plans")
        self._write(view)
        self._missing -= view.nbytes

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        if self._missing:
            raise ValueError(f"{self._missing} bytes less than the header plans")
        self._guard(lambda: os.fsync(self._file.fileno()))
        self._file.close()
        self._partial.replace(self._path)
        sync_folder(self._path.parent)

    def _discard(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _write(self, view: memoryview) -> None:
        done = 0
        while done < view.nbytes:
            rest = view[done:]
            done += self._guard(lambda rest=rest: self._file.write(rest))

    def _guard(self, action: Any) -> Any:
        try:
            return action()
        except OSError as error:
            raise write_error(self._path, error) from error


def write_error(path: Path, error: OSError) -> InputError:
    """What to tell the user when writing `path` failed."""
    if error.errno in FULL:
        limited = error.errno == errno.EFBIG
        reason = "a limit on file sizes was reached" if limited else "the disk is full"
        return InputError(
            f"{path}: {reason}; the unfinished file was removed. "
            "Free some space or choose another folder."
        )
    return InputError(f"{path}: cannot be written: {error.strerror}. Choose another folder.")


def write_text(path: Path, text: str) -> None:
    """Write a small file so that `path` either has all of it or is as it was."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise write_error(path, error) from error
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
