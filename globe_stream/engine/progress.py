"""Progress on standard error: rate, time left, error and memory."""

import sys
import time
from typing import Protocol

from tqdm import tqdm

from globe_stream.formatting import format_bytes, format_seconds

_LINE_SECONDS = 20.0
_QUIET_SECONDS = 2.0


class Bar(Protocol):
    """One pass in progress."""

    def advance(self, done: int, note: str, memory: int) -> None:
        """`done` more experts are finished; `note` says what they showed."""

    def close(self) -> None:
        """The pass has ended."""


class Progress:
    """Makes bars: live on a terminal, a line now and then elsewhere, none when silent."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent

    def bar(self, title: str, total: int, done: int = 0) -> Bar:
        """A bar for `total` experts of which `done` were finished earlier."""
        if self._silent:
            return _Silent()
        if sys.stderr.isatty():
            return _Live(title, total, done)
        return _Lines(title, total, done)

    def say(self, text: str) -> None:
        """One line to the user."""
        if not self._silent:
            tqdm.write(text, file=sys.stderr)


class _Silent:
    def advance(self, done: int, note: str, memory: int) -> None:
        del done, note, memory

    def close(self) -> None:
        return None


class _Live:
    def __init__(self, title: str, total: int, done: int) -> None:
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            unit="expert",
            leave=False,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def advance(self, done: int, note: str, memory: int) -> None:
        self._bar.set_postfix_str(f"{note}, {format_bytes(memory)}".lstrip(", "), refresh=False)
        self._bar.update(done)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    def __init__(self, title: str, total: int, done: int) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._start = time.monotonic()
        self._next = self._start + _QUIET_SECONDS

    def advance(self, done: int, note: str, memory: int) -> None:
        self._done += done
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LINE_SECONDS
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        left = format_seconds((self._total - self._done) / max(rate, 1e-9))
        parts = [
            f"{self._done}/{self._total} experts",
            f"{rate:.1f}/s",
            f"{left} left",
            note,
            format_bytes(memory),
        ]
        print(f"{self._title}: " + ", ".join(filter(None, parts)), file=sys.stderr, flush=True)

    def close(self) -> None:
        return None
