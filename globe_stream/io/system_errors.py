"""What the operating system refuses because of a path, a permission or a disk, in one line."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from globe_stream.errors import GlobeError, InputError

_ROOM = "Make room or raise the limit, then give the command again; what was finished is kept"
_ALLOW = "Change its permissions or choose another path"
_DISK = "Check the disk or the connection, then give the command again; what was finished is kept"
_FILES = "Raise the limit of open files (ulimit -n) or close other programs"

_TABLE = {
    errno.EACCES: ("permission denied", _ALLOW),
    errno.EPERM: ("operation not permitted", _ALLOW),
    errno.EROFS: ("the file system is read-only", "Choose a path on a disk that can be written"),
    errno.ENOENT: ("no such file or folder", "Check the path; what should be there is missing"),
    errno.ENOTDIR: ("a part of the path is no folder", "Choose a path whose parents are folders"),
    errno.EISDIR: ("is a folder", "Give a file instead of a folder"),
    errno.EEXIST: ("exists already", "Choose another path, or move what is there out of the way"),
    errno.ENAMETOOLONG: ("the path is too long", "Choose a shorter path"),
    errno.ELOOP: ("its symbolic links go in a circle", "Choose another path"),
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: ("a limit on the size of files was reached", _ROOM),
    errno.EMFILE: ("too many files are open", _FILES),
    errno.ENFILE: ("too many files are open", _FILES),
    errno.EIO: ("input/output error", _DISK),
    errno.ESTALE: ("the network drive lost the file", _DISK),
}
"""Reason and advice for every error number that a path, a disk or a limit can cause."""

_FAULTS = (errno.EIO, errno.ESTALE)
"""Failures of the machine, which no other input would have prevented."""


def error_of(error: OSError, path: Path | None = None, doing: str = "") -> GlobeError | None:
    """The error to raise in place of `error`, in one line; None for one that is not in the table.

    `path` stands in for a path that `error` does not name; `doing` (such as "writing x") says
    what failed. InputError for what the user can mend, GlobeError for a fault of the machine.
    """
    if error.errno not in _TABLE:
        return None
    reason, advice = _TABLE[error.errno]
    named = error.filename2 or error.filename
    place = os.fsdecode(named) if isinstance(named, str | bytes) else path
    where = f"{place}: " if place is not None else ""
    kind = GlobeError if error.errno in _FAULTS else InputError
    return kind(f"{where}{reason}{f' while {doing}' if doing else ''}. {advice}")


@contextmanager
def explained(path: Path, doing: str = "") -> Iterator[None]:
    """Raise `error_of` in place of an OSError inside the block, if that is in the table."""
    try:
        yield
    except OSError as error:
        explained_error = error_of(error, path, doing)
        if explained_error is None:
            raise
        raise explained_error from error
