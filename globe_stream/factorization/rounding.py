"""Matrices in a narrow dtype whose products with another matrix stay close to the exact ones.

Rounding every entry of X by itself leaves an error in X Y that Y Y^T amplifies where the rows of Y
are nearly dependent. Here the columns of X are rounded one after another, and the error of each is
made up for by the columns still to come, as far as the products X Y can tell them apart.
Source: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers" (2023), section 3.
"""

import torch
from torch import Tensor

from globe_stream.kernels import trellis
from globe_stream.kernels.quantize import group_columns, quantize

BLOCK = 64
"""Columns that are rounded before the later ones are updated by one product."""
CODED = 16
"""Columns of a trellis code that are chosen together before later ones make up for their errors."""
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
    return order, _propagation(exact)


def _propagation(exact: Tensor) -> Tensor:
    """Row j (k, k): what an error of one in column j takes from those after it."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(exact))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor / factor.diagonal()[:, None]


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


def quantize_columns(matrix: Tensor, gram: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """As `kernels.quantize.quantize` of X (n, k), with ||(X - rounded) Y||_F small.

    gram is Y Y^T (k, k), both are float64. Where numbers are those of a trellis code, CODED of them
    are chosen together and later columns make up for their errors; scales are then the best for
    all. Finer levels are rounded to the nearest. Operations: n k^2 besides those of the code.
    """
    if bits not in trellis.SHAPES:
        return quantize(matrix.float(), bits)
    exact = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    factor, left = _propagation(exact), matrix.clone()
    groups = group_columns(matrix.shape[1])
    spread = torch.empty_like(matrix)
    for group in groups:
        root = matrix[:, group].square().mean(1, keepdim=True).sqrt()
        spread[:, group] = root.clamp_min(torch.finfo(torch.bfloat16).tiny)
    numbers = torch.zeros(*matrix.shape, dtype=torch.uint8)
    length = trellis.SHAPES[bits][0]
    for first in range(0, matrix.shape[1], CODED):
        last = min(first + CODED, matrix.shape[1])
        wanted = (left[:, first:last] / spread[:, first:last]).float()
        before = torch.nn.functional.pad(numbers, (length, 0))[:, first : first + length]
        chosen = trellis.encode(wanted, bits, before)
        numbers[:, first:last] = chosen
        values = trellis.decode(torch.cat((before, chosen), 1), bits)[:, length:]
        error = left[:, first:last] - values * spread[:, first:last]
        own = factor[first:last, first:last]
        steps = torch.linalg.solve_triangular(own, error, upper=True, left=False)
        left[:, last:] -= steps @ factor[first:last, last:]
    return numbers, _best_scales(matrix, trellis.decode(numbers, bits), exact, groups)


def _best_scales(matrix: Tensor, values: Tensor, gram: Tensor, groups: list[slice]) -> Tensor:
    """Scales s (n, groups) bfloat16 of least ||(X - s values) Y||_F, for X (n, k) and Y Y^T."""
    exact = values.double()
    system = torch.empty(len(matrix), len(groups), len(groups)).double()
    side = torch.empty(len(matrix), len(groups)).double()
    for row, group in enumerate(groups):
        seen = exact[:, group] @ gram[group]
        side[:, row] = torch.linalg.vecdot(seen, matrix)
        for column, other in enumerate(groups):
            system[:, row, column] = torch.linalg.vecdot(seen[:, other], exact[:, other])
    tiny = torch.finfo(torch.bfloat16).tiny
    system.diagonal(dim1=1, dim2=2).add_(tiny)
    scales: Tensor = torch.linalg.solve(system, side)
    return scales.bfloat16()
