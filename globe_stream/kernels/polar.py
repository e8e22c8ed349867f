"""Nearest matrices with orthonormal rows, by matrix products alone."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from globe_stream.errors import GlobeError

SMALLEST = 1e-3
MAX_SCHEDULES = 3
TAYLOR = (1.875, -1.25, 0.375)  # (15 - 10 x^2 + 3 x^4) / 8: cubic convergence near one

Quintic = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class PolarResult:
    """Orthonormal rows and how they were found."""

    rows: Tensor  # (b, r, k), dtype and device of the input
    residual: Tensor  # (b,) ||Q Q^T - I||_F / sqrt(r)
    iterations: int  # quintic steps taken on the whole batch
    fallbacks: int  # matrices that needed the exact (SVD) solution


def polar_rows(matrices: Tensor, *, tolerance: float = 1e-5) -> PolarResult:
    """Return the row-orthonormal Q nearest to each Y, the polar factor ``(Y Y^T)^-1/2 Y``.

    Newton-Schulz iteration with the quintics that are minimax-optimal for singular values in
    [1e-3, 1], followed by the same schedule again where that was not enough. A matrix still
    not orthonormal (rank deficient or nearly so) gets the exact solution and is counted.

    Args:
        matrices: Y (b, r, k) with r <= k, float32 or float64.
        tolerance: on ``||Q Q^T - I||_F / sqrt(r)``.

    Memory: three more (b, r, k) arrays and two (b, r, r).

    Raises:
        GlobeError: r > k, or NaN or Inf in Y.

    Source: docs/design.md, section Warm-up; Amsel, Persson, Musco, Gower, "The Polar Express"
    (2025).
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        raise GlobeError(f"polar: {matrices.shape[-2]} rows cannot be orthonormal: too few columns")
    if not bool(torch.isfinite(matrices).all()):
        raise GlobeError("polar: the matrices hold NaN or Inf")
    rows = matrices / _spectral_bound(matrices)
    residual = torch.full(rows.shape[:1], torch.inf, dtype=rows.dtype, device=rows.device)
    still, steps = _open(residual, tolerance), 0
    for _ in range(MAX_SCHEDULES):
        if not still.numel():
            break
        part = rows[still]
        for coefficients in minimax_schedule(SMALLEST):
            part = _quintic_step(part, coefficients)
            steps += 1
        rows[still], residual[still] = part, _residual(part)
        still = _open(residual, tolerance)
    if still.numel():
        rows[still] = _exact(matrices[still])
        residual[still] = _residual(rows[still])
    return PolarResult(rows, residual, steps, int(still.numel()))


def _open(residual: Tensor, tolerance: float) -> Tensor:
    return (~(residual <= tolerance)).nonzero()[:, 0]


def _spectral_bound(matrices: Tensor) -> Tensor:
    """Upper bound ||Y Y^T||_F^1/2 on the largest singular value, (b, 1, 1), never zero."""
    largest = matrices.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    scaled = matrices / largest
    gram = torch.bmm(scaled, scaled.transpose(1, 2))
    norm: Tensor = torch.linalg.matrix_norm(gram, keepdim=True)
    return largest * norm.sqrt() * (1 + 1e-6)


def _quintic_step(rows: Tensor, coefficients: Quintic) -> Tensor:
    """a X + b (X X^T) X + c (X X^T)^2 X."""
    first, third, fifth = coefficients
    gram = torch.bmm(rows, rows.transpose(1, 2))
    mix = torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth)
    return torch.baddbmm(rows, mix, rows, beta=first)


def _residual(rows: Tensor) -> Tensor:
    gram = torch.bmm(rows, rows.transpose(1, 2))
    gram.diagonal(dim1=1, dim2=2).sub_(1)
    norm: Tensor = torch.linalg.matrix_norm(gram)
    return norm / math.sqrt(rows.shape[1])


def _exact(matrices: Tensor) -> Tensor:
    device = torch.device("cpu") if matrices.device.type == "mps" else matrices.device
    wide = matrices.to(device, torch.float64)
    left, _, right = torch.linalg.svd(wide, full_matrices=False)
    product: Tensor = torch.bmm(left, right)
    return product.to(matrices)


@lru_cache(maxsize=8)
def minimax_schedule(smallest: float) -> tuple[Quintic, ...]:
    """Odd quintics whose composition maps [smallest, 1] to one within float32 rounding.

    Each is the best uniform approximation of one on the interval that the last one left.
    """
    low, high, schedule = smallest, 1.0, []
    while high - low > 0.02:
        coefficients, error = _best_quintic(low / high)
        schedule.append(_rescale(coefficients, high))
        low, high = 1 - error, 1 + error
    return (*schedule, TAYLOR)


def _rescale(coefficients: Quintic, high: float) -> Quintic:
    first, third, fifth = coefficients
    return first / high, third / high**3, fifth / high**5


def _best_quintic(low: float) -> tuple[Quintic, float]:
    """Minimax odd quintic for the constant one on [low, 1] and its error (Remez exchange)."""
    inner = np.array([low + 0.25 * (1 - low), low + 0.75 * (1 - low)])
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    for _ in range(100):
        points = np.array([low, *inner, 1.0])
        system = np.column_stack([points, points**3, points**5, signs])
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        disc = max(9 * b * b - 20 * a * c, 0.0) ** 0.5
        extremes = np.sqrt([(-3 * b - disc) / (10 * c), (-3 * b + disc) / (10 * c)])
        if np.abs(extremes - inner).max() < 1e-12:
            break
        inner = extremes
    return (float(a), float(b), float(c)), float(abs(error))
