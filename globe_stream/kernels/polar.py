"""Nearly orthonormal rows near a matrix, by matrix products alone.

What rotations are for here (aligning experts before they are averaged) does not need exact ones:
three steps align them as well as the polar factor does (docs/design.md, section Warm-up).
"""

import torch
from torch import Tensor

from globe_stream.errors import GlobeError
from globe_stream.kernels.coarse import Precision, coarse_bmm
from globe_stream.kernels.gram import row_gram
from globe_stream.kernels.reductions import frobenius_norms

STEPS = 3
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def nearly_orthonormal_rows(matrices: Tensor, precision: Precision = "float32") -> Tensor:
    """Q (b, r, k) whose singular values are close to one, with the singular vectors of Y.

    Three steps ``X <- a X + b (X X^T) X + c (X X^T)^2 X`` from ``X = Y / ||Y Y^T||_F^1/2``:
    singular values above 2 % of that bound end between 0.68 and 1.14, smaller ones grow fortyfold.
    A matrix of zeros gives the first r unit vectors.

    Args:
        matrices: Y (b, r, k) with r <= k, floating.
        precision: of the steps' products; the bound is exact.

    Operations: about 15 r^2 k + 5 r^3 each. Memory: two more (b, r, k) and two (b, r, r).

    Raises:
        GlobeError: r > k.

    Source: docs/design.md, section Warm-up; Jordan et al., "Muon: An optimizer for hidden layers
    in neural networks" (2024), for the coefficients.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        raise GlobeError(f"polar: {matrices.shape[-2]} rows cannot be orthonormal: too few columns")
    gram = row_gram(matrices)
    largest = gram.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
    zero = largest[:, 0, 0] == 0
    gram = gram.div_(torch.where(largest > 0, largest, 1.0))
    norm = frobenius_norms(gram)[:, None, None]
    norm[zero] = 1.0
    rows, spare = (matrices.new_empty(matrices.shape) for _ in range(2))  # contiguous
    torch.div(matrices, (torch.where(largest > 0, largest, 1.0) * norm).sqrt(), out=rows)
    gram, mix = gram.div_(norm), torch.empty_like(gram)
    for step in range(STEPS):
        if step:
            row_gram(rows, precision, gram)
        rows, spare = _step(rows, gram, precision, mix, spare), rows
    if bool(zero.any()):
        rows[zero] = torch.eye(*rows.shape[1:], dtype=rows.dtype, device=rows.device)
    return rows


def _step(rows: Tensor, gram: Tensor, precision: Precision, mix: Tensor, out: Tensor) -> Tensor:
    """`out` = a X + b G X + c G^2 X for X (b, r, k) and G = X X^T (b, r, r); fills `mix` too."""
    first, third, fifth = COEFFICIENTS
    row_gram(gram, precision, mix).mul_(fifth).add_(gram, alpha=third)
    return coarse_bmm(mix, rows, precision, out).add_(rows, alpha=first)
