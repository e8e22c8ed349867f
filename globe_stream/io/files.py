"""Durable file operations: what has returned survives a power cut."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from globe_stream.errors import InputError
from globe_stream.formatting import format_bytes

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Reasons for which there is no room: the disk, a quota, a limit on the size of files."""
_MORE = "Make room (or raise the limit) and give the same command again; what was finished is kept"


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


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a crash leaves either the old content or the new."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def remove(path: Path) -> None:
    """Delete the file or the tree `path`, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_free(directory: Path, count: int, what: str) -> None:
    """Raise InputError unless `directory`'s disk has `count` bytes free for `what`."""
    free = shutil.disk_usage(directory).free
    if free < count:
        raise InputError(
            f"{directory}: the disk is full: {what} needs {format_bytes(count)}, "
            f"{format_bytes(free)} are free. Make room or put the run elsewhere; "
            "what was finished is kept"
        )


@contextmanager
def disk_full_is_input_error(directory: Path, what: str) -> Iterator[None]:
    """Turn a lack of room (FULL) inside the block into an InputError naming `what`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(f"{directory}: {_lack(error)} while writing {what}. {_MORE}") from error


def _lack(error: OSError) -> str:
    if error.errno == errno.EFBIG:
        return "a file grew beyond the limit on file sizes"
    return "the quota was used up" if error.errno == errno.EDQUOT else "the disk became full"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
