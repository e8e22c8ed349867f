"""What torch says of a device that is pretended: torch.mps, torch.cuda and their likes."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

WHOLE = 16 << 30
"""Memory of a pretended device without a planted limit."""


class _Stream:
    """A queue whose work is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, _: Any) -> None:
        pass

    def wait_event(self, _: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def synchronize(self) -> None:
        pass


class _Event:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, _: Any = None) -> None:
        pass

    def wait(self, _: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


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
                "Stream": _Stream,
                "Event": _Event,
                "stream": lambda _: nullcontext(),
                "current_stream": lambda *_: _Stream(),
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
