"""One process at a time works on a run directory."""

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from globe_stream.errors import InputError
from globe_stream.io.closing import Closing

_LOCK, _HOLDER = "lock", "lock.pid"

LOCK_FILES = (_LOCK, _HOLDER)
"""Names of the files that a lock keeps in its directory."""


class RunLock(Closing):
    """An advisory lock on `directory`, held until `close` or the end of the process."""

    def __init__(self, directory: Path) -> None:
        self._lock = FileLock(directory / _LOCK, thread_local=False)
        holder = directory / _HOLDER
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise InputError(
                f"{directory}: held by another process (pid {_read(holder)}). "
                "Wait for it to end or stop it, then give the same command again"
            ) from error
        with suppress(OSError):  # a full disk: the lock holds, only its holder stays unknown
            holder.write_text(str(os.getpid()), encoding="ascii")

    def close(self) -> None:
        """Let go of the lock; calling it twice does no harm."""
        self._lock.release()


def _read(holder: Path) -> str:
    try:
        return holder.read_text(encoding="ascii", errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"
