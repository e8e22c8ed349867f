"""The GEMM precision of an export: the run's own, so that a resumed export has the same bytes.

Source: docs/design.md, section Numerics.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from globe_stream.engine.device import Machine
from globe_stream.engine.records import MACHINE
from globe_stream.memory.allocator import return_freed_memory
from globe_stream.store.run import Run

_SIDE = 256
_EXACT_ERROR = 2e-6


@contextmanager
def arithmetic_of(run: Run) -> Iterator[None]:
    """Multiply with the precision that `run` measured to be fast, if it is exact here too.

    What is faster was measured once, when the run began; timing it again could choose otherwise
    in a resumed export. Whether it is exact does not vary on one machine.
    """
    return_freed_memory()
    before = torch.get_float32_matmul_precision()
    machine = run.state(MACHINE, Machine)
    torch.set_float32_matmul_precision(machine.matmul_precision if machine else "highest")
    if _relative_error() > _EXACT_ERROR:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _relative_error() -> float:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, _SIDE, _SIDE, generator=generator)
    exact = left.double() @ right.double()
    return float(((left @ right).double() - exact).norm() / exact.norm())
