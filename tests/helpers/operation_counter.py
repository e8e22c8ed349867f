"""Counts the floating-point operations that torch carries out, by watching every call."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


class OperationCounter(TorchDispatchMode):
    """While active: `single` and `double`, operations in float32 and in float64.

    Products are counted by torch's own registry, factorizations and solves by their textbook
    counts; elementwise work is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.single = self.double = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        count = COUNTS.get(func._overloadpacket)
        if count is not None:
            operations = float(count(args, kwargs or {}, out))
            if args[0].dtype == torch.float64:
                self.double += operations
            else:
                self.single += operations
        return out


def _registered(packet: Any) -> Callable[[Any, Any, Any], float]:
    return lambda args, kwargs, out: flop_registry[packet](*args, **kwargs, out_val=out)


def _added(args: Any, kwargs: Any, out: Any) -> float:
    """C + A B with A (..., n, k) and B (..., k, l)."""
    del kwargs, out
    left, right = args[1], args[2]
    return 2.0 * left.numel() * right.shape[-1]


def _square(share: float) -> Callable[[Any, Any, Any], float]:
    """`share` n^3 for each matrix (..., n, n) of the first argument."""

    def count(args: Any, kwargs: Any, out: Any) -> float:
        del kwargs, out
        return share * float(args[0].numel() * args[0].shape[-1])

    return count


def _solved(args: Any, kwargs: Any, out: Any) -> float:
    """Two triangular solves with a factor (..., n, n): 2 n^2 for each column."""
    del kwargs, out
    right, factor = args[0], args[1]
    return 2.0 * right.numel() * factor.shape[-1]


def _solved_by_lu(args: Any, kwargs: Any, out: Any) -> float:
    del kwargs, out
    matrix, right = args[0], args[1]
    return 2 / 3 * matrix.numel() * matrix.shape[-1] + 2.0 * right.numel() * matrix.shape[-1]


COUNTS: dict[Any, Callable[[Any, Any, Any], float]] = {
    aten.mm: _registered(aten.mm),
    aten.bmm: _registered(aten.bmm),
    aten.addmm: _added,
    aten.addmm_: _added,
    aten.baddbmm: _added,
    aten.baddbmm_: _added,
    aten.linalg_cholesky_ex: _square(1 / 3),
    aten._cholesky_solve_helper: _solved,
    aten.cholesky_solve: _solved,
    aten.linalg_inv_ex: _square(2.0),
    aten._linalg_eigh: _square(4 / 3),
    aten._linalg_solve_ex: _solved_by_lu,
}
