"""Adapters refitted to mixtures of atoms, and the error that they leave.

    H_i = phi(Z_i),   A_i = W_i M H_i^T (H_i M H_i^T + ridge)^-1

M is the identity, or the metric of the inputs that an expert's layer sees. Seeding (the initial
error), training (every epoch) and export (the adapters written) use it.
Source: docs/design.md, sections Adapters and Calibration.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.factorization.activation import Activation
from globe_stream.factorization.input_metric import InputMetric
from globe_stream.kernels.gram import row_gram
from globe_stream.kernels.quantize import orthonormalised
from globe_stream.kernels.ridge import RidgeResult, ridge_solve

# Below this squared relative error the expanded formula loses digits to cancellation.
_CANCELLATION = 1e-3
FIT_BYTES = 64 << 20
"""Arrays of the experts that are fitted together take about this much, or those of one expert."""


def fitted_together(rank: int, width: int) -> int:
    """How many experts with mixtures of `rank` x `width` are fitted together.

    Composing and coding want large batches, because they read the whole bank; fits want small ones,
    because their arrays are large. It depends on sizes alone, so that results never depend on
    the memory at hand.
    """
    return max(1, FIT_BYTES // (32 * rank * width))


@dataclass(frozen=True)
class AdapterFit:
    """Adapters of a batch and what they achieve; squared norms are of the normalised weights.

    With a metric M, the Gram matrix, the projected weights and the solution are float64.
    """

    hidden: Tensor  # H (b, r, d)
    hidden_gram: Tensor  # H M H^T (b, r, r)
    projected: Tensor  # W M H^T (b, p, r)
    solve: RidgeResult  # adapters (b, p, r) and the solver's condition and fallbacks
    penalty: Tensor  # rho ||A||_F^2 (b,) float64, the energy that the ridge takes
    squared_error: Tensor  # ||W - A H||_F^2 (b,) float64, whatever the metric
    metric: InputMetric | None = None

    @property
    def adapters(self) -> Tensor:
        """A (b, p, r)."""
        return self.solve.solution

    def of_orthonormal_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows L^-1 H (b, r, d) float32 with H H^T = L L^T, their adapters and Gram matrix.

        These are A L (b, p, r) and L^-1 H M H^T L^-T (b, r, r), float64.
        """
        rows, factor = orthonormalised(self.hidden)
        half = torch.linalg.solve_triangular(factor, self.hidden_gram.double(), upper=False)
        gram = torch.linalg.solve_triangular(factor, half.mT, upper=False)
        return rows, self.adapters.double() @ factor, gram


def fit_adapters(
    weights: Tensor,
    mixtures: Tensor,
    activation: Activation,
    ridge: float,
    metric: InputMetric | None = None,
) -> AdapterFit:
    """Refit the adapters of W (b, p, d) to Z (b, r, d) and measure the error.

    `ridge` is relative to the mean diagonal of H M H^T; `metric` is M (d, d), None the identity.
    Raises GlobeError for NaN or Inf.
    """
    hidden = activation.apply(mixtures)
    if metric is not None:
        return _fitted_for_inputs(weights, hidden, ridge, metric)
    gram = row_gram(hidden)
    projected = torch.bmm(weights, hidden.mT)
    solve = ridge_solve(gram, projected, ridge)
    penalty = solve.amount.cpu().double() * _squares(solve.solution)
    error = squared_error(weights, hidden, projected, solve.solution, penalty)
    return AdapterFit(hidden, gram, projected, solve, penalty, error)


def _fitted_for_inputs(
    weights: Tensor, hidden: Tensor, ridge: float, metric: InputMetric
) -> AdapterFit:
    """The fit in the metric M: in float64, as M may be worse conditioned than H H^T."""
    exact = hidden.cpu().double()
    seen = exact @ metric.matrix
    gram, projected = seen @ exact.mT, weights.cpu().double() @ seen.mT
    solve = ridge_solve(gram, projected, ridge)
    penalty = solve.amount * _squares(solve.solution)
    error = _squares(torch.baddbmm(weights, solve.solution.to(weights), hidden, alpha=-1))
    return AdapterFit(hidden, gram, projected, solve, penalty, error, metric)


def squared_error(
    weights: Tensor, hidden: Tensor, projected: Tensor, adapters: Tensor, penalty: Tensor
) -> Tensor:
    """||W - A H||_F^2 (b,) float64 for adapters A (b, p, r) with A (H H^T + rho I) = W H^T.

    ||W||^2 - <A, W H^T> - rho ||A||^2 for W (b, p, d), H (b, r, d), projected = W H^T (b, p, r)
    and penalty = rho ||A||^2 (b,) float64: no product is needed. The residual itself is formed
    where one of the batch is fitted so well that the difference loses its digits.
    """
    norms = _squares(weights)
    left = norms - _inner(projected, adapters) - penalty
    if bool((left > _CANCELLATION * norms).all()):
        return left
    return _squares(torch.baddbmm(weights, adapters, hidden, alpha=-1))


def _squares(matrices: Tensor) -> Tensor:
    rows: Tensor = torch.linalg.vector_norm(matrices, dim=2)
    return rows.cpu().double().square().sum(1)


def _inner(left: Tensor, right: Tensor) -> Tensor:
    rows: Tensor = torch.linalg.vecdot(left, right, dim=2)
    return rows.cpu().double().sum(1)
