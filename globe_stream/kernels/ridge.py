"""Batched ridge least squares by Cholesky factorisation, with counted fallbacks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.errors import GlobeError
from globe_stream.kernels.dense_solvers import cholesky, cholesky_solve, pseudo_inverse, solve

RIDGE_FACTOR = 10.0
MAX_RAISES = 4
BLOCK = 128
"""Columns that a solve with a large factor handles at a time."""


@dataclass(frozen=True, slots=True)
class RidgeResult:
    """Solutions and how hard they were to get."""

    solution: Tensor  # (b, k, r), dtype of the right-hand side
    raised: int  # times that a matrix had its ridge raised tenfold
    fallbacks: int  # matrices solved by LU or pseudo-inverse instead
    condition: Tensor  # (b,) estimate from the Cholesky diagonal; inf for fallbacks
    amount: Tensor  # (b,) what was added to the diagonal of each matrix


def ridge_solve(gram: Tensor, rhs: Tensor, ridge: float) -> RidgeResult:
    """Solve ``X (G + ridge s I) = R`` for every matrix, s being the mean diagonal of G.

    With ``G = H H^T`` and ``R = W H^T`` this is the minimiser of
    ``||W - X H||_F^2 + ridge s ||X||_F^2``. The ridge is relative, so scaling H changes
    nothing. A matrix that is not positive definite has its ridge raised tenfold, at most four
    times (from one rounding error if the ridge is zero), then is solved by LU with the given
    ridge, or by pseudo-inverse where it is singular; all of it is counted.

    Args:
        gram: G (b, r, r), symmetric positive semidefinite; not changed.
        rhs: R (b, k, r), same dtype and device.
        ridge: relative, >= 0.

    Memory: two more arrays like ``gram`` and one like ``rhs``, two for r < 256.

    Raises:
        GlobeError: NaN or Inf in G or R, or a negative ridge.

    Source: docs/design.md, sections Adapters and Numerics.
    """
    if ridge < 0:
        raise GlobeError(f"ridge: {ridge} is negative")
    if not (_finite(gram) and _finite(rhs)):
        raise GlobeError("ridge: the normal equations hold NaN or Inf")
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    factor, info = cholesky(_ridged(gram, ridge * mean))
    amount = ridge * mean
    raised, failed = _raise_ridges(gram, mean, amount, ridge, factor, info > 0)
    solution = _solve_factored(factor, rhs)
    diagonal = factor.diagonal(dim1=1, dim2=2)
    condition = (diagonal.amax(1) / diagonal.amin(1)).square()
    if failed.numel():
        condition[failed] = torch.inf
        solution[failed] = _general_solve(_ridged(gram[failed], ridge * mean[failed]), rhs[failed])
    return RidgeResult(solution, raised, int(failed.numel()), condition, amount)


def _finite(values: Tensor) -> bool:
    """Whether all are finite; elements are looked at only where their sum is not."""
    return bool(values.sum().isfinite()) or bool(torch.isfinite(values).all())


def _solve_factored(factor: Tensor, rhs: Tensor) -> Tensor:
    """X (b, k, r) with X L L^T = R (b, k, r) for lower triangular L = `factor` (b, r, r).

    Large systems go block by block: with the inverses of the diagonal blocks everything else is
    matrix products, which run at twice the speed of triangular solves. Source: Higham, "Accuracy
    and Stability of Numerical Algorithms" (2002), chapter 8.
    """
    r = factor.shape[-1]
    if r < 2 * BLOCK:
        return cholesky_solve(rhs.transpose(1, 2), factor).transpose(1, 2)
    blocks = [slice(start, min(start + BLOCK, r)) for start in range(0, r, BLOCK)]
    inverses = [_triangular_inverse(factor[:, block, block]) for block in blocks]
    solution = rhs.clone(memory_format=torch.contiguous_format)
    for block, inverse in zip(blocks, inverses, strict=True):
        own, before = solution[:, :, block], slice(0, block.start)
        own.baddbmm_(solution[:, :, before], factor[:, block, before].mT, alpha=-1)
        own.copy_(torch.bmm(own, inverse.mT))
    for block, inverse in zip(reversed(blocks), reversed(inverses), strict=True):
        own, after = solution[:, :, block], slice(block.stop, r)
        own.baddbmm_(solution[:, :, after], factor[:, after, block], alpha=-1)
        own.copy_(torch.bmm(own, inverse))
    return solution


def _triangular_inverse(block: Tensor) -> Tensor:
    eye = torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
    inverse: Tensor = torch.linalg.solve_triangular(block, eye.expand_as(block), upper=False)
    return inverse


def _ridged(gram: Tensor, amount: Tensor) -> Tensor:
    system = gram.clone()
    system.diagonal(dim1=1, dim2=2).add_(amount[:, None])
    return system


def _raise_ridges(
    gram: Tensor, mean: Tensor, amount: Tensor, ridge: float, factor: Tensor, bad: Tensor
) -> tuple[int, Tensor]:
    """Retry the bad matrices, replacing their factors and amounts in place.

    Returns the number of retries and the indices that stay bad.
    """
    raised, failed = 0, bad.nonzero()[:, 0]
    step = max(ridge, torch.finfo(gram.dtype).eps)
    for _ in range(MAX_RAISES):
        if not failed.numel():
            break
        step *= RIDGE_FACTOR
        raised += int(failed.numel())
        retried, info = cholesky(_ridged(gram[failed], step * mean[failed]))
        good = info == 0
        factor[failed[good]] = retried[good]
        amount[failed[good]] = step * mean[failed[good]]
        failed = failed[~good]
    if failed.numel():
        factor[failed] = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    return raised, failed


def _general_solve(systems: Tensor, rhs: Tensor) -> Tensor:
    """X (b, k, r) with X S = R, by LU; by pseudo-inverse where LU breaks down."""
    sides = rhs.transpose(1, 2)
    solved, info = solve(systems.transpose(1, 2), sides)
    # An LU that succeeds on a numerically singular matrix gives huge, useless values.
    error = (systems.transpose(1, 2) @ solved - sides).abs().amax((1, 2))
    limit = sides.abs().amax((1, 2)) * torch.finfo(rhs.dtype).eps ** 0.5
    broken = (info > 0) | ~(error <= limit)
    if bool(broken.any()):
        solved[broken] = pseudo_inverse(systems[broken]) @ sides[broken]
    return solved.transpose(1, 2)
