"""Progress on standard error: rate, time left, error and memory."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from globe_stream.formatting import format_bytes, format_seconds
from globe_stream.memory.meter import Meter

_LINE_SECONDS = 20.0
_QUIET_SECONDS = 2.0

ProgressCall = Callable[[int, int, str], None]
"""Called with what is done, how much there is in all, and a short note."""


class Bar(Protocol):
    """One pass in progress."""

    def advance(self, done: int, note: str, memory: int) -> None:
        """`done` more are finished; `note` says what they showed, `memory` is in bytes."""

    def close(self) -> None:
        """The pass has ended."""


class Outlook:
    """What a command still has to do after the bar at hand, from what its steps should take."""

    def __init__(self) -> None:
        self._expected: dict[str, float] = {}

    def expect(self, seconds: Mapping[str, float]) -> None:
        """The steps to come by their titles, in order, and about what each takes."""
        self._expected = dict(seconds)

    def begin(self, title: str) -> tuple[float, float]:
        """What the step `title` should take, and those after it; those before it are over.

        Both are zero for a step that was not expected.
        """
        if title not in self._expected:
            return 0.0, 0.0
        names = list(self._expected)
        for name in names[: names.index(title)]:
            del self._expected[name]
        own = self._expected[title]
        return own, sum(self._expected.values()) - own


@dataclass(frozen=True)
class Remaining:
    """Seconds left of a step and of all steps, at the speed of the step so far.

    `own` is what the step should take in all, `later` the steps after it; `first` of its `total`
    were done when it began.
    """

    own: float
    later: float
    total: int
    first: int

    def after(self, done: int, seconds: float) -> tuple[float, float | None]:
        """Left of the step and of all, with `done` after `seconds`; None where none is later."""
        each = seconds / max(1, done - self.first)
        left = each * (self.total - done)
        if not self.later or not self.own:
            return left, None
        return left, left + self.later * (each * self.total / self.own)


class Progress:
    """Makes bars: live on a terminal, a line now and then elsewhere, none when silent.

    Once the steps of a whole command are expected (`outlook`), bars also say what is left of it.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.outlook = Outlook()
        self._silent = silent
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def bar(self, title: str, total: int, done: int = 0, unit: str = "experts") -> Bar:
        """A bar for `total` of `unit`, of which `done` were finished earlier."""
        remaining = Remaining(*self.outlook.begin(title), total, done)
        if self._silent:
            return _Silent()
        if sys.stderr.isatty():
            return _Live(self._console, title, remaining, unit)
        return _Lines(title, remaining, unit)

    def say(self, text: str) -> None:
        """One line to the user."""
        if self._silent:
            return
        if sys.stderr.isatty():
            self._console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)


class Tally:
    """Counts what is done and passes it on to `progress`, if there is one."""

    def __init__(self, total: int, progress: ProgressCall | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def advance(self, count: int, note: str) -> None:
        """`count` more are done."""
        self._done += count
        if self._progress:
            self._progress(self._done, self._total, note)


@contextmanager
def step_bar(
    title: str, *, unit: str = "experts", progress: Progress | None = None, silent: bool = False
) -> Iterator[ProgressCall]:
    """A bar driven by calls of (done, total, note).

    A count that falls, or another total, begins another bar.
    """
    progress, meter = progress or Progress(silent=silent), Meter()
    bars: list[Bar] = []
    finished = expected = 0

    def step(done: int, total: int, note: str) -> None:
        nonlocal finished, expected
        if done < finished or total != expected or not bars:
            for bar in bars:
                bar.close()
            bars[:] = [progress.bar(title, total, unit=unit)]
            finished, expected = 0, total
        bars[0].advance(done - finished, note, meter.now())
        finished = done

    try:
        yield step
    finally:
        for bar in bars:
            bar.close()


class _Silent:
    def advance(self, done: int, note: str, memory: int) -> None:
        del done, note, memory

    def close(self) -> None:
        return None


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


class _Live:
    def __init__(self, console: Console, title: str, remaining: Remaining, unit: str) -> None:
        self._remaining, self._done = remaining, remaining.first
        self._start = time.monotonic()
        self._progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(unit),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task(
            title, total=remaining.total, completed=remaining.first, note=""
        )
        self._progress.start()

    def advance(self, done: int, note: str, memory: int) -> None:
        self._done += done
        _, whole = self._remaining.after(self._done, time.monotonic() - self._start)
        parts = [_in_all(whole), note, format_bytes(memory)]
        self._progress.update(self._task, advance=done, note=", ".join(filter(None, parts)))

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    def __init__(self, title: str, remaining: Remaining, unit: str) -> None:
        self._title, self._remaining, self._unit = title, remaining, unit
        self._done = remaining.first
        self._start = time.monotonic()
        self._next = self._start + _QUIET_SECONDS

    def advance(self, done: int, note: str, memory: int) -> None:
        self._done += done
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LINE_SECONDS
        rate = (self._done - self._remaining.first) / max(now - self._start, 1e-9)
        left, whole = self._remaining.after(self._done, now - self._start)
        parts = [
            f"{self._done}/{self._remaining.total} {self._unit}",
            f"{rate:.1f}/s",
            f"{format_seconds(left)} left",
            _in_all(whole),
            note,
            format_bytes(memory),
        ]
        print(f"{self._title}: " + ", ".join(filter(None, parts)), file=sys.stderr, flush=True)

    def close(self) -> None:
        return None


def _in_all(seconds: float | None) -> str:
    return "" if seconds is None else f"{format_seconds(seconds)} in all"
