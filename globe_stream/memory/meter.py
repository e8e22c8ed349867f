"""What the process really holds: resident memory now, and the peak of each stage.

Linux keeps the exact peak (VmHWM) and lets it be reset, so stages are measured exactly there;
elsewhere a thread samples every few milliseconds. On macOS the figure is the process's footprint,
which counts what a device that shares the machine's memory holds, and every byte once.
Source: docs/design.md, section Memory.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_SAMPLE_SECONDS = 0.005


class Meter:
    """Peaks by stage, in bytes."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._exact = _can_reset()
        self._watch: _ResettablePeak | _SampledPeak | None = None
        self._process = psutil.Process()

    def now(self) -> int:
        """Bytes held at this moment, device memory included where it is the machine's own."""
        return _resident(self._process)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the highest `now` inside the block as the peak of `name`."""
        watch = _ResettablePeak() if self._exact else _SampledPeak(self.now)
        with watch:
            self._watch = watch
            try:
                yield
            finally:
                self._watch = None
                self.peaks[name] = max(self.peaks.get(name, 0), watch.peak(), self.now())

    @property
    def stage_peak(self) -> int:
        """The highest `now` of the stage in progress, or `now` outside of one."""
        return self.now() if self._watch is None else self._watch.peak()

    @property
    def peak(self) -> int:
        """The highest peak of all stages so far, the one in progress included, in bytes."""
        found = [*self.peaks.values(), *([self._watch.peak()] if self._watch else [])]
        return max(found, default=self.now())


class _Usage(ctypes.Structure):
    """`struct rusage_info_v0` of macOS."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        *(
            (name, ctypes.c_uint64)
            for name in (
                "user_time",
                "system_time",
                "idle_wakeups",
                "interrupt_wakeups",
                "page_ins",
                "wired_size",
                "resident_size",
                "footprint",
                "start",
                "exit",
            )
        ),
    )


def footprint(library: Any, process: int) -> int | None:
    """Bytes that macOS charges to `process`, Metal's buffers included; None if it does not say.

    `library` is libproc; resident pages and driver allocations overlap, and here count once.
    """
    usage = _Usage()
    failed = library.proc_pid_rusage(process, 0, ctypes.byref(usage))
    return None if failed else int(usage.footprint)


def _resident(process: psutil.Process) -> int:
    if sys.platform == "darwin":
        charged = footprint(ctypes.CDLL("/usr/lib/libproc.dylib"), process.pid)
        return int(process.memory_full_info().uss) if charged is None else charged
    return int(process.memory_info().rss)


def _can_reset() -> bool:
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return _STATUS.exists()


def _high_water() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class _ResettablePeak:
    def __enter__(self) -> "_ResettablePeak":
        _CLEAR_REFS.write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def peak(self) -> int:
        return _high_water()


class _SampledPeak:
    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._highest = read()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_SampledPeak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def peak(self) -> int:
        return self._highest

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._highest = max(self._highest, self._read())
