"""Round to nearest: 2^b equally spaced values from the least to the largest of a group.

What every runtime's plain quantization does; the measure that anything else of as many bits has
to beat. Scale and least value of a group are stored in 16 bits each.
"""

import torch
from torch import Tensor

GROUP = 64
FINE_GROUP = 32
"""The group at 2 bits, where one of 64 loses much."""
_SCALE_BITS = 16


def group_of(bits: int) -> int:
    """Elements that share a scale and a least value."""
    return FINE_GROUP if bits == 2 else GROUP


def round_to_nearest(values: Tensor, bits: int) -> Tensor:
    """`values` (..., n) rounded in groups along n, in float32.

    Memory: three arrays like `values`.
    """
    size = values.shape[-1]
    group = group_of(bits)
    padding = -size % group
    wide = values.float()
    if padding:
        wide = torch.cat((wide, wide[..., -1:].expand(*wide.shape[:-1], padding)), -1)
    grouped = wide.unflatten(-1, (-1, group))  # type: ignore[no-untyped-call]
    least = grouped.amin(-1, keepdim=True).bfloat16().float()
    steps = ((grouped.amax(-1, keepdim=True) - least) / (2**bits - 1)).bfloat16().float()
    steps = steps.clamp_min(torch.finfo(torch.float32).tiny)
    numbers = ((grouped - least) / steps).round_().clamp_(0, 2**bits - 1)
    rounded: Tensor = numbers.mul_(steps).add_(least).flatten(-2)[..., :size]
    return rounded


def rounded_bits(rows: int, columns: int, bits: int) -> int:
    """Stored bits of a matrix (rows, columns) rounded along its columns."""
    groups = -(-columns // group_of(bits))
    return rows * (columns * bits + groups * 2 * _SCALE_BITS)
