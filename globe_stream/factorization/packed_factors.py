"""How banks and adapters in few bits an element lie in tensors, whatever folder holds them.

`packed` are bit planes and `scales` those of groups (`kernels.quantize`). A bank is packed row by
row. An adapter is packed as a whole, and is that of the orthonormal rows L^-1 H: an error in it is
as large in the weights, while one in A is enlarged by the condition of H.
"""

import torch
from torch import Tensor

from globe_stream.kernels.quantize import dequantize, group_count, triangular, unpack

Spec = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of a tensor."""


def bank_specs(name: str, shape: tuple[int, int, int], bits: int) -> list[Spec]:
    """The tensors `name`scales and `name`packed of a bank (m, r, d)."""
    m, r, d = shape
    return [
        (f"{name}scales", "BF16", (m, r, group_count(d))),
        (f"{name}packed", "U8", (m, r, bits, -(-d // 8))),
    ]


def adapter_specs(name: str, p: int, r: int, bits: int, count: tuple[int, ...] = ()) -> list[Spec]:
    """The tensors `name`scales and `name`packed of adapters (p, r), `count` of them stacked."""
    return [
        (f"{name}scales", "BF16", (*count, p, group_count(r))),
        (f"{name}packed", "U8", (*count, bits, -(-p * r // 8))),
    ]


def bank_values(packed: Tensor, scales: Tensor, d: int) -> Tensor:
    """Rows (..., d) float32 of a bank's `packed` (..., b, ceil(d / 8)) and `scales`."""
    return dequantize(unpack(packed, d), scales, packed.shape[-2])


def adapter_values(packed: Tensor, scales: Tensor, r: int) -> Tensor:
    """Adapters (..., p, r) float32, of L^-1 H, from `packed` and `scales` (..., p, groups)."""
    p = scales.shape[-2]
    numbers = unpack(packed, p * r).unflatten(-1, (p, r))  # type: ignore[no-untyped-call]
    return dequantize(numbers, scales, packed.shape[-2])


def plain_adapters(adapters: Tensor, hidden: Tensor) -> Tensor:
    """A (p, r) float32 of H (r, d), from an adapter (p, r) of L^-1 H: A = adapter L^-1."""
    factor = triangular(hidden[None].cpu().double())[0]
    solved: Tensor = torch.linalg.solve_triangular(
        factor, adapters.cpu().double(), upper=False, left=False
    )
    return solved.float()
