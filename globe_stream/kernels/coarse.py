"""Products that may be coarse: gradients, the warm-up's rotations and coding.

Gram matrices, adapters and measured errors never go through here. A coarse product is as exact as
its precision says and always float32 in and out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "tf32", "bf16"]


def coarse_bmm(
    left: Tensor, right: Tensor, precision: Precision, out: Tensor | None = None
) -> Tensor:
    """left (b, n, k) times right (b, k, l), float32, with factors rounded to `precision`.

    float32: not rounded; tf32: to 10 bits of fraction (CUDA; elsewhere as float32); bf16: factors
    and product to 7 bits. Sums are float32. `out` (b, n, l), which may be a part of a larger array,
    is filled and returned. Memory: for bf16, copies of half the factors' bytes.
    """
    if precision == "bf16":
        product = torch.bmm(left.bfloat16(), right.bfloat16()).to(left.dtype)
        return product if out is None else out.copy_(product)
    if out is not None and left.device.type != "cpu":
        return out.copy_(coarse_bmm(left, right, precision))
    with _tensor_float(precision == "tf32" and left.is_cuda):
        return torch.bmm(left, right, out=out)


@contextmanager
def _tensor_float(wanted: bool) -> Iterator[None]:
    """Let CUDA round factors to TensorFloat-32 inside the block."""
    if not wanted:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
