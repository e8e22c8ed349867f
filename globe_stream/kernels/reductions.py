"""Long sums on a device that gets them wrong.

Matrix products on the GPUs of M1 and M2 read past their operands' end where a sum has 32,767 terms
or more, silently, in every release of torch so far (pytorch issues 193487 and 195163). There sums
are cut into pieces of fixed shape; elsewhere they are taken whole.
Source: docs/design.md, section Devices.
"""

import torch
from torch import Tensor

LONGEST_SUM = 16_384
"""Terms of a sum on MPS, at most."""


def pieces(terms: int, device: torch.device) -> list[slice]:
    """The ranges that a sum over `terms` terms on `device` is cut into, in order."""
    length = LONGEST_SUM if device.type == "mps" else max(1, terms)
    return [slice(start, min(start + length, terms)) for start in range(0, terms, length)]


def product(left: Tensor, right: Tensor) -> Tensor:
    """left (n, k) times right (l, k)^T: (n, l)."""
    first, *rest = pieces(left.shape[1], left.device)
    total = left[:, first] @ right[:, first].T
    for part in rest:
        total.addmm_(left[:, part], right[:, part].T)
    return total


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total (n, l) += left (n, k) right (l, k)^T, in place."""
    for part in pieces(left.shape[1], left.device):
        total.addmm_(left[:, part], right[:, part].T)


def frobenius_norms(matrices: Tensor) -> Tensor:
    """||X_i||_F (b,) for X (b, r, k), or ||X||_F () for X (r, k); a sum over rows, then columns
    where whole ones would be too long.
    """
    norms: Tensor
    if matrices.device.type == "mps":
        norms = torch.linalg.vector_norm(torch.linalg.vector_norm(matrices, dim=-1), dim=-1)
    else:
        norms = torch.linalg.matrix_norm(matrices)
    return norms


def squared_sums(matrices: Tensor) -> Tensor:
    """||X_i||_F^2 (b,) for X (b, r, k), as a sum of squares; by rows as `frobenius_norms`."""
    squares = matrices.square()
    if matrices.device.type == "mps":
        return squares.sum(2).sum(1)
    return squares.sum((1, 2))
