"""Positioned reads from shards, and advice to the operating system about their pages."""

import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import psutil

from globe_stream.errors import InputError
from globe_stream.io.files import read_up_to
from globe_stream.io.system_errors import explained

_OPEN_FILES = 8
_CACHED_SHARE = 8  # a pass over less than memory / 8 may stay in the page cache


def should_drop(total_bytes: int) -> bool:
    """Whether a pass over `total_bytes` would push other things out of the page cache."""
    return total_bytes > _memory() // _CACHED_SHARE


@cache
def _memory() -> int:
    """Bytes of the machine's memory."""
    return int(psutil.virtual_memory().total)


class ShardFiles:
    """Open shards, a few at a time. `bytes_read` counts what was read.

    With `drop` the pages read are given back to the operating system as soon as `forget` names
    them, so that a pass over a large checkpoint leaves the page cache to others.
    """

    def __init__(self, drop: bool) -> None:
        self.bytes_read = 0
        self._drop = drop
        self._open: dict[Path, int] = {}

    def read_into(self, path: Path, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `path` from `start`; InputError if it ends before."""
        with explained(path, "reading"):
            count = read_up_to(self._file(path), start, buffer)
        self.bytes_read += count
        if count < len(buffer):
            raise InputError(
                f"{path}: is truncated: {len(buffer):,} bytes expected at {start:,}, "
                f"{count:,} present. Download the file again."
            )

    def forget(self, ranges: Iterable[tuple[Path, int, int]]) -> None:
        """Say that the bytes `start` to `stop` of each path will not be read again soon."""
        if not self._drop or not hasattr(os, "posix_fadvise"):
            return
        for path, start, stop in ranges:
            page = start - start % os.sysconf("SC_PAGESIZE")
            os.posix_fadvise(self._file(path), page, stop - page, os.POSIX_FADV_DONTNEED)

    def _file(self, path: Path) -> int:
        if path in self._open:
            return self._open[path]
        if len(self._open) >= _OPEN_FILES:
            os.close(self._open.pop(next(iter(self._open))))
        file = os.open(path, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        elif sys.platform == "darwin" and self._drop:
            import fcntl

            fcntl.fcntl(file, fcntl.F_NOCACHE, 1)
        self._open[path] = file
        return file

    def close(self) -> None:
        """Close all files; a later read opens them again."""
        for file in self._open.values():
            os.close(file)
        self._open.clear()
