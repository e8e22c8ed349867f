"""Faults that a pretended device can be given, and the errors of real ones."""

from dataclasses import dataclass
from typing import Any

import torch

_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "addmm_": 1, "baddbmm_": 1}
"""Matrix products, and which argument is the first factor."""
_TILED_SIDES, _TILE = 16, 64
"""From how many rows and columns a product goes by the faulty way, and how far that reads over."""


@dataclass
class Faults:
    """What is planted.

    `missing` names operations without a kernel, such as `linalg_cholesky_ex`. A product whose sums
    have more than `longest_sum` terms reads past its operands' end, as on M1 and M2 (pytorch issue
    195163: from 32,767 terms on, where both sides of the product are 16 or more). `wrong` names
    operations that give results that are off by a thousandth. `memory` is what the device
    holds, in bytes.
    """

    missing: frozenset[str] = frozenset()
    longest_sum: int | None = None
    wrong: frozenset[str] = frozenset()
    memory: int | None = None

    def plant(self, name: str, args: Any, made: Any) -> None:
        """Spoil what the operation `name` made of `args`, in place, as planted."""
        first = made[0] if isinstance(made, (tuple, list)) else made
        if name in self.wrong:
            first.mul_(1.001)
        if name in _PRODUCTS and self.longest_sum is not None:
            left, right = args[_PRODUCTS[name] : _PRODUCTS[name] + 2]
            if left.shape[-1] > self.longest_sum and min(first.shape[-2:]) >= _TILED_SIDES:
                first.add_(left[..., -_TILE:] @ right[..., -_TILE:, :])


def out_of_memory(kind: str, size: int, held: int, limit: int | None) -> RuntimeError:
    """The error that a device of `kind` raises for `size` bytes more than it has."""
    if kind == "cuda":
        return torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
    return RuntimeError(
        f"MPS backend out of memory (MPS allocated: {held}, other allocations: 0, "
        f"max allowed: {limit}). Tried to allocate {size} bytes on private pool. "
        "Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory allocations"
    )
