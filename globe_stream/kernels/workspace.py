"""Named buffers that are allocated once and reused for every batch.

A pass that keeps all its large temporaries in one workspace has a peak that is known
before it starts, and causes no page faults after its first batch.
"""

from math import prod

import torch
from torch import Tensor


class Workspace:
    """Reused buffers on one device, by name."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous tensor of `shape` with undefined content, backed by buffer `name`."""
        count = prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < count:
            self._buffers.pop(name, None)
            buffer = torch.empty(count, dtype=dtype, device=self.device)
            self._buffers[name] = buffer
        return buffer[:count].view(shape)

    @property
    def nbytes(self) -> int:
        """Bytes held by all buffers."""
        return sum(buffer.numel() * buffer.itemsize for buffer in self._buffers.values())

    def clear(self) -> None:
        """Give all buffers back."""
        self._buffers.clear()
