"""Matrices in a narrow dtype whose products with another matrix stay close to the exact ones.

Rounding every entry of X by itself leaves an error in X Y that Y Y^T amplifies where the rows of Y
are nearly dependent. Here the columns of X are rounded one after another, and the error of each is
made up for by the columns still to come, as far as the products X Y can tell them apart.
Source: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers" (2023), section 3.
"""

import torch
from torch import Tensor

BLOCK = 64
"""Columns that are rounded before the later ones are updated by one product."""
RIDGE = 1e-6
"""Share of the mean diagonal that is added to Y Y^T before it is inverted."""


def feedback(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The order in which columns are rounded (k,), and how later ones make up (k, k) float64.

    gram is Y Y^T (k, k). Columns whose rows of Y have more energy are rounded first; row j of the
    second result is what an error of one in column j takes from the columns after it.
    """
    exact = gram.cpu().double()
    order = exact.diagonal().argsort(descending=True, stable=True)
    exact = exact[order][:, order]
    exact.diagonal().add_(RIDGE * exact.diagonal().mean().clamp_min(torch.finfo(exact.dtype).tiny))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(exact))
    factor = torch.linalg.cholesky(inverse, upper=True)
    return order, factor / factor.diagonal()[:, None]


def round_columns(matrix: Tensor, gram: Tensor, dtype: torch.dtype) -> Tensor:
    """X (n, k) as `dtype` with ||(X - rounded) Y||_F small, given Y Y^T = `gram` (k, k).

    Operations: n k^2 + k^3. Memory: three arrays like X and, in float64, four like gram.
    """
    if dtype == matrix.dtype:
        return matrix
    order, factor = feedback(gram)
    factor, left = factor.to(matrix), matrix[:, order]
    rounded = torch.empty_like(matrix, dtype=dtype)
    for first in range(0, left.shape[1], BLOCK):
        last = min(first + BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, first:last])
        for k in range(first, last):
            column = left[:, k].to(dtype)
            rounded[:, order[k]] = column
            errors[:, k - first] = left[:, k] - column
            left[:, k + 1 : last] -= torch.outer(errors[:, k - first], factor[k, k + 1 : last])
        left[:, last:].addmm_(errors, factor[first:last, last:], alpha=-1)
    return rounded
