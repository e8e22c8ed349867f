"""Files: exact reads and writes, durable replacement, free space, folders.

What has returned survives a power cut.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from globe_stream.errors import GlobeError, InputError
from globe_stream.formatting import format_bytes
from globe_stream.io.system_errors import explained

PIECE_BYTES = 8 << 20
"""Bytes that are copied or hashed at a time."""

PARTIAL = ".partial"
"""Ending of files that are not complete yet."""

_CALL_BYTES = 64 << 20  # some systems refuse to read or write 2 GiB at once
_SPARE_BYTES = 1 << 20  # file system records


# -- bytes at a place --------------------------------------------------------------------------


def read_up_to(descriptor: int, start: int, view: memoryview) -> int:
    """Fill `view` with the bytes of a file from `start`; returns how many there were."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done : done + _CALL_BYTES]], start + done)
        if count == 0:
            break
        done += count
    return done


def read_exactly(descriptor: int, start: int, view: memoryview, path: Path) -> None:
    """Fill `view` with the bytes of the file `path` from `start`; GlobeError if it ends before."""
    with explained(path, "reading"):
        done = read_up_to(descriptor, start, view)
    if done < len(view):
        raise GlobeError(
            f"{path}: ends at byte {start + done:,}, {start + len(view):,} were expected: "
            "it was shortened. Restore it, or make it again"
        )


def write_exactly(descriptor: int, start: int, content: bytes | memoryview, path: Path) -> None:
    """Put all of `content` at byte `start` of the file `path`."""
    view, done = memoryview(content).cast("B"), 0
    with explained(path, "writing"):
        while done < len(view):
            count = os.pwrite(descriptor, view[done : done + _CALL_BYTES], start + done)
            if count == 0:
                raise OSError(errno.EIO, "nothing was written")
            done += count


def pieces(path: Path, start: int, stop: int) -> Iterator[memoryview]:
    """The bytes `start` to `stop` of `path`, in views of one buffer that the next overwrites."""
    buffer = memoryview(bytearray(min(PIECE_BYTES, max(1, stop - start))))
    with explained(path, "reading"):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        for begin in range(start, stop, len(buffer)):
            view = buffer[: min(len(buffer), stop - begin)]
            read_exactly(descriptor, begin, view, path)
            yield view
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, begin, len(view), os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """sha256 of a file, read a piece at a time."""
    digest = hashlib.sha256()
    for piece in pieces(path, 0, path.stat().st_size):
        digest.update(piece)
    return digest.hexdigest()


# -- whole files -------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, which then has all of it, or is as it was before."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`, for any content."""
    partial = path.with_name(path.name + PARTIAL)
    with explained(path, "writing"):
        try:
            partial.write_bytes(content)
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_new(path: Path, *parts: bytes | memoryview) -> None:
    """Write `parts` to the new file `path`, which has all of it once this returns.

    For folders that are flushed, and published or deleted, as a whole.
    """
    with explained(path, "writing"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        start = 0
        for part in parts:
            write_exactly(descriptor, start, part, path)
            start += memoryview(part).nbytes
    finally:
        os.close(descriptor)


def publish(partial: Path, path: Path) -> None:
    """Make the finished file `partial`, in the same folder, durable under the name `path`."""
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def sync_tree(path: Path) -> None:
    """Flush `path` and everything below it to the disk, files before their directories."""
    if path.is_dir():
        for child in path.iterdir():
            sync_tree(child)
    _sync(path)


def sync_parents(path: Path, root: Path) -> None:
    """Flush the directories from `path`'s parent up to and including `root`."""
    for parent in path.parents:
        _sync(parent)
        if parent == root:
            return


def remove(path: Path) -> None:
    """Delete the file or the tree `path`, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# -- room and folders --------------------------------------------------------------------------


def require_free(folder: Path, needed: int, what: str) -> None:
    """Raise InputError unless the disk of `folder` has room for `needed` bytes of `what`."""
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise InputError(
            f"{folder}: the disk is too full: {what} needs {format_bytes(needed)}, "
            f"{format_bytes(free)} are free. Make room or choose another folder; "
            "what was finished is kept"
        )


def make_folder(path: Path) -> list[Path]:
    """Make the folder `path` and its parents; returns those made, the deepest first.

    Raises InputError when one cannot be made or written in; nothing made is then left.
    """
    made: list[Path] = []
    with explained(path, "making the folder"):
        missing = [one for one in (path, *path.parents) if not one.exists()]
        try:
            for one in reversed(missing):
                one.mkdir()
                made.insert(0, one)
            with tempfile.TemporaryFile(dir=path):  # to see that it can be written in
                pass
        except OSError:
            remove_empty(made)
            raise
    return made


def remove_empty(folders: list[Path]) -> None:
    """Remove those of `folders`, the deepest first, that hold nothing."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
