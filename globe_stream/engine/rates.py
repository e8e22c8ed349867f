"""What this machine computes and reads a second, measured in a moment, and what work takes at that.

Source: docs/design.md, section Operations.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.io.records import Record
from globe_stream.memory.operations import Work

ATTAINED = 0.7
"""Share of the rate of large products that whole stages attain."""
SIDES = (512, 1024, 2048, 4096)
"""Sides of the matrices whose products may be timed."""
_LONG_ENOUGH = 2e-3
_REPEATS = 4
_READ_BYTES = 48 << 20
_READ_SECONDS = 0.3
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Rates(Record):
    """Operations a second of float32 and float64 products, and bytes a second of the disk.

    `disk` is None where nothing could be read: what takes time to read is then not known.
    """

    single: float
    double: float
    disk: float | None

    def seconds(self, work: Work) -> float:
        """What `work` takes: reading goes on beside computing, the run's own disk does not."""
        computing = (work.single / self.single + work.double / self.double) / ATTAINED
        if self.disk is None:
            return computing
        return max(computing, work.read_bytes / self.disk) + work.disk_bytes / self.disk

    def metrics(self) -> dict[str, float | None]:
        """By their published names."""
        return {
            "machine/operations_per_second": self.single,
            "machine/double_operations_per_second": self.double,
            "machine/bytes_per_second": self.disk,
        }


TYPICAL = Rates(1e11, 5e10, 1e9)
"""For comparing stages with each other where nothing was measured."""


def measured_rates(device: torch.device, experts: Sequence[ExpertMatrix]) -> Rates:
    """The rates of `device`, and of the disk that holds `experts`, in under a second."""
    single = product_rate(device, torch.float32)
    double = product_rate(torch.device("cpu"), torch.float64)
    return Rates(single, double, _reading_rate(experts))


@cache
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of square matrices, measured once in a process.

    The side is the smallest of SIDES whose product takes long enough to be timed; the best of a few
    counts.
    """
    for side in SIDES:
        quickest = _product_seconds(device, dtype, side)
        if quickest >= _LONG_ENOUGH:
            break
    return float(2 * side**3 / quickest)


def _product_seconds(device: torch.device, dtype: torch.dtype, side: int) -> float:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(side, side, generator=generator, dtype=dtype).to(device)
    product = left @ left

    def multiply() -> None:
        torch.mm(left, left, out=product)
        product[0, 0].item()

    return min(_seconds(multiply) for _ in range(_REPEATS))


def _reading_rate(experts: Sequence[ExpertMatrix]) -> float | None:
    """Bytes a second of reading experts that are not in the page cache, where that can be asked."""
    read, begin = 0, time.perf_counter()
    for expert in experts:
        weight = expert.storage.weight
        late = time.perf_counter() - begin > _READ_SECONDS
        if read >= _READ_BYTES or late or not weight.path.is_file():
            break
        descriptor = os.open(weight.path, os.O_RDONLY)
        try:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, weight.start, expert.nbytes, os.POSIX_FADV_DONTNEED)
            read += _read(descriptor, weight.start, expert.nbytes)
        finally:
            os.close(descriptor)
    return read / max(time.perf_counter() - begin, 1e-9) if read else None


def _read(descriptor: int, start: int, size: int) -> int:
    buffer, read = bytearray(_PIECE_BYTES), 0
    while read < size and (count := os.preadv(descriptor, [buffer], start + read)):
        read += count
    return read


def _seconds(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
