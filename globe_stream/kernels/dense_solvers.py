"""Small dense solvers on a tensor's device, or on the CPU for devices that have none; counted.

Which operations a device lacks is found out at start-up (`engine.capabilities`) and told here, once
for the process as with torch's own settings. Source: docs/design.md, section Devices.
"""

from collections import Counter
from collections.abc import Callable, Collection
from typing import TypeVar

import torch
from torch import Tensor

OPERATIONS = ("cholesky", "cholesky_solve", "inverse", "solve", "pinv", "eigh", "svd")
"""What can be missing; `inverse`, `eigh` and `svd` are in float64 on the CPU on every device."""

Tensors = TypeVar("Tensors", bound=tuple[Tensor, ...])


class Fallbacks:
    """The operations that each kind of device leaves to the CPU, and how often it did."""

    def __init__(self) -> None:
        self._missing: dict[str, frozenset[str]] = {}
        self.counts: Counter[str] = Counter()

    def leave_to_cpu(self, device: torch.device, operations: Collection[str]) -> None:
        """From now on, take `operations` of `device` to the CPU; counts start anew."""
        self._missing[device.type] = frozenset(operations)
        self.counts.clear()

    def metrics(self, device: torch.device) -> dict[str, int]:
        """Counts by metric name, of every operation that `device` lacks."""
        missing = sorted(self._missing.get(device.type, ()))
        return {f"device/fallbacks/{name}": self.counts[name] for name in missing}

    def run(self, operation: str, call: Callable[..., Tensors], *given: Tensor) -> Tensors:
        """`call(*given)`, on the CPU if the device of `given` lacks `operation`."""
        device = given[0].device
        if operation not in self._missing.get(device.type, ()):
            return call(*given)
        self.counts[operation] += 1
        found = call(*(tensor.cpu() for tensor in given))
        return tuple(tensor.to(device) for tensor in found)  # type: ignore[return-value]


FALLBACKS = Fallbacks()


def cholesky(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factors (b, r, r) of symmetric ones, and info (b,): above zero where there is none."""
    return FALLBACKS.run("cholesky", _cholesky, matrices)


def cholesky_solve(sides: Tensor, factor: Tensor) -> Tensor:
    """X (b, r, k) with L L^T X = sides (b, r, k), for lower factors L (b, r, r)."""
    return FALLBACKS.run("cholesky_solve", _cholesky_solve, sides, factor)[0]


def solve(systems: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """X (b, r, k) with S X = sides, by LU, and info (b,): above zero for a singular S (b, r, r)."""
    return FALLBACKS.run("solve", _solve, systems, sides)


def pseudo_inverse(systems: Tensor) -> Tensor:
    """Pseudo-inverses (b, r, r) of symmetric matrices."""
    return FALLBACKS.run("pinv", _pseudo_inverse, systems)[0]


def _cholesky(matrices: Tensor) -> tuple[Tensor, Tensor]:
    factor, info = torch.linalg.cholesky_ex(matrices)
    return factor, info


def _cholesky_solve(sides: Tensor, factor: Tensor) -> tuple[Tensor]:
    return (torch.cholesky_solve(sides, factor),)


def _solve(systems: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    solved, info = torch.linalg.solve_ex(systems, sides)
    return solved, info


def _pseudo_inverse(systems: Tensor) -> tuple[Tensor]:
    return (torch.linalg.pinv(systems, hermitian=True),)
