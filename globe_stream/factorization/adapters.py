"""Adapters refitted to mixtures of atoms, and the error that they leave.

    H_i = phi(Z_i),   A_i = W_i H_i^T (H_i H_i^T + ridge)^-1

Seeding (the initial error), training (every epoch) and export (the adapters written) use it.
Source: docs/design.md, section Adapters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.factorization.activation import Activation
from globe_stream.kernels.ridge import RidgeResult, ridge_solve

# Below this squared relative error the expanded formula loses digits to cancellation.
_CANCELLATION = 1e-3


@dataclass(frozen=True)
class AdapterFit:
    """Adapters of a batch and what they achieve; squared norms are of the normalised weights."""

    hidden: Tensor  # H (b, r, d)
    hidden_gram: Tensor  # H H^T (b, r, r)
    solve: RidgeResult  # adapters (b, p, r) and the solver's condition and fallbacks
    squared_error: Tensor  # (b,) float64

    @property
    def adapters(self) -> Tensor:
        """A (b, p, r)."""
        return self.solve.solution


def fit_adapters(
    weights: Tensor, mixtures: Tensor, activation: Activation, ridge: float
) -> AdapterFit:
    """Refit the adapters of W (b, p, d) to Z (b, r, d) and measure the error.

    `ridge` is relative to the mean diagonal of H H^T. Raises GlobeError for NaN or Inf.
    """
    hidden = activation.apply(mixtures)
    gram = torch.bmm(hidden, hidden.mT)
    projected = torch.bmm(weights, hidden.mT)
    solve = ridge_solve(gram, projected, ridge)
    error = squared_error(weights, hidden, gram, projected, solve.solution)
    return AdapterFit(hidden, gram, solve, error)


def squared_error(
    weights: Tensor, hidden: Tensor, gram: Tensor, projected: Tensor, adapters: Tensor
) -> Tensor:
    """||W - A H||_F^2 (b,) float64, from products at hand unless that would cancel.

    ||W||^2 - 2 <A, W H^T> + <A H H^T, A> for W (b, p, d), H (b, r, d), gram = H H^T (b, r, r),
    projected = W H^T (b, p, r) and A (b, p, r); the residual itself where one of the batch is
    fitted so well that the sum loses its digits.
    """
    norms = _squares(weights)
    expanded = norms + _inner(torch.baddbmm(projected, adapters, gram, beta=-2), adapters)
    if bool((expanded > _CANCELLATION * norms).all()):
        return expanded
    return _squares(torch.baddbmm(weights, adapters, hidden, alpha=-1))


def _squares(matrices: Tensor) -> Tensor:
    rows: Tensor = torch.linalg.vector_norm(matrices, dim=2)
    return rows.double().cpu().square().sum(1)


def _inner(left: Tensor, right: Tensor) -> Tensor:
    rows: Tensor = torch.linalg.vecdot(left, right, dim=2)
    return rows.double().cpu().sum(1)
