"""What torch says of a device that is pretended: torch.mps, torch.cuda and their likes."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

WHOLE = 16 << 30
"""Memory of a pretended device without a planted limit."""


class Stream:
    """A queue whose copies are done as late as they may be: when something waits for them."""

    current = threading.local()
    """`current.stream`: the stream that a block of this thread chose, if any."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._waiting: deque[Callable[[], Any]] = deque()
        self._entered = 0
        self._done = 0

    def defer(self, copy: Callable[[], Any]) -> None:
        """Carry out `copy` later."""
        self._waiting.append(copy)
        self._entered += 1

    def carry_out(self, count: int) -> None:
        """Do all that is among the first `count` copies and was not done."""
        while self._done < count:
            self._waiting.popleft()()
            self._done += 1

    def wait_stream(self, other: "Stream") -> None:
        other.synchronize()

    def wait_event(self, event: "Event") -> None:
        event.synchronize()

    def synchronize(self) -> None:
        self.carry_out(self._entered)

    @property
    def entered(self) -> int:
        """How many copies were ever put into it."""
        return self._entered


class Event:
    """A mark in a stream."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._stream: Stream | None = None
        self._mark = 0

    def record(self, stream: Stream) -> None:
        self._stream, self._mark = stream, stream.entered

    def synchronize(self) -> None:
        if self._stream is not None:
            self._stream.carry_out(self._mark)


@contextmanager
def _chosen(stream: Stream) -> Iterator[None]:
    before = chosen_stream()
    Stream.current.stream = stream
    try:
        yield
    finally:
        Stream.current.stream = before


def chosen_stream() -> Stream | None:
    """The stream that `torch.cuda.stream` chose in this thread."""
    return getattr(Stream.current, "stream", None)


@contextmanager
def pretend(device: Any) -> Iterator[None]:
    """Inside the block torch reports that `device` (a StrictDevice) is there."""

    def whole() -> int:
        return WHOLE if device.faults.memory is None else device.faults.memory

    functions = {
        "mps": {
            torch.backends.mps: {"is_available": lambda: True},
            torch.mps: {
                "driver_allocated_memory": lambda: device.held_bytes,
                "current_allocated_memory": lambda: device.held_bytes,
                "recommended_max_memory": whole,
                "set_per_process_memory_fraction": lambda share: device.called.append(
                    ("fraction", share)
                ),
                "empty_cache": lambda: device.called.append(("empty_cache",)),
                "synchronize": lambda: None,
            },
        },
        "cuda": {
            torch.cuda: {
                "is_available": lambda: True,
                "is_initialized": lambda: True,
                "device_count": lambda: 1,
                "memory_allocated": lambda *_: device.held_bytes,
                "memory_reserved": lambda *_: device.held_bytes,
                "max_memory_reserved": lambda *_: device.peak_bytes,
                "max_memory_allocated": lambda *_: device.peak_bytes,
                "reset_peak_memory_stats": lambda *_: None,
                "mem_get_info": lambda *_: (whole() - device.held_bytes, whole()),
                "get_device_name": lambda *_: "pretended",
                "get_device_properties": lambda *_: SimpleNamespace(
                    name="pretended", total_memory=whole()
                ),
                "set_per_process_memory_fraction": lambda share, *_: device.called.append(
                    ("fraction", share)
                ),
                "empty_cache": lambda: device.called.append(("empty_cache",)),
                "synchronize": lambda *_: None,
                "Stream": Stream,
                "Event": Event,
                "stream": _chosen,
                "current_stream": lambda *_: chosen_stream() or Stream(),
            }
        },
    }[device.kind]
    patches = [
        patch.object(module, name, value)
        for module, named in functions.items()
        for name, value in named.items()
    ]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in reversed(patches):
            one.stop()
