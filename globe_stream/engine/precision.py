"""The GEMM precision of an export: the run's own, so that a resumed export has the same bytes.

Source: docs/design.md, section Numerics.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from globe_stream.engine.device import EXACT_ERROR, Machine, product_error
from globe_stream.engine.records import MACHINE
from globe_stream.memory.allocator import return_freed_memory
from globe_stream.store.run import Run


@contextmanager
def arithmetic_of(run: Run) -> Iterator[None]:
    """Multiply as `run` did, if that is exact here too: the run may come from another machine."""
    return_freed_memory()
    before = torch.get_float32_matmul_precision()
    machine = run.state(MACHINE, Machine)
    torch.set_float32_matmul_precision(machine.matmul_precision if machine else "highest")
    if product_error() > EXACT_ERROR:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
