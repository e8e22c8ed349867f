"""Codes as supports and values: what `<group>/codes` holds.

For N experts with nnz non-zero codes in all: `count` (N,) int32 support sizes, `indices` (nnz,)
int32 atoms and `values` (nnz,) float32, expert after expert, atoms ascending.
"""

import torch
from torch import Tensor

from globe_stream.store import arrays
from globe_stream.store.run import Run


def pack(codes: Tensor) -> dict[str, Tensor]:
    """Dense codes (N, m) as {"count", "indices", "values"}."""
    kept = codes.detach().cpu().float()
    support = kept != 0
    return {
        "count": support.sum(1).to(torch.int32),
        "indices": support.nonzero()[:, 1].to(torch.int32),
        "values": kept[support],
    }


def unpack(count: Tensor, indices: Tensor, values: Tensor, bases: int) -> Tensor:
    """Dense codes (N, m) with m = `bases` from their packed form."""
    codes = torch.zeros(len(count), bases)
    rows = torch.repeat_interleave(torch.arange(len(count)), count.long())
    codes[rows, indices.long()] = values
    return codes


def named(group: str, codes: Tensor) -> dict[str, arrays.Storable]:
    """The arrays of `group`'s codes (N, m), ready for `Run.commit`."""
    return {f"{group}/codes/{name}": values for name, values in pack(codes).items()}


def load(run: Run, group: str, bases: int) -> Tensor:
    """`group`'s dense codes (N, m) from `run`."""
    count, indices, values = (
        torch.from_numpy(arrays.read(run.array(f"{group}/codes/{name}")))
        for name in ("count", "indices", "values")
    )
    return unpack(count, indices, values, bases)
