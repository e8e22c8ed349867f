"""One process at a time works on a run directory."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from globe_stream.errors import InputError


class RunLock:
    """An advisory lock on `directory/lock`, held until `release` or the end of the process."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._descriptor, 64).decode().strip() or "unknown"
            os.close(self._descriptor)
            raise InputError(
                f"{directory}: held by another process (pid {holder}). "
                "Wait for it to end or stop it, then give the same command again"
            ) from error
        with suppress(OSError):  # a full disk: the lock holds, only its holder stays unknown
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let go of the lock; calling it twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
