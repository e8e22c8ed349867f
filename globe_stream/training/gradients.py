"""Where each expert's mixture should move: a gradient in the dual space and its weight.

Mixture Z_i wants to move by M^-1 F_i C^-1 / L_i, with the metric M (r, r) seen from the left, C
(d, d) from the right and the weight L_i. Keeping the gradient F_i instead of the displacement
spares two large products an expert: coding needs only <B_j, F_i>, and the bank's sum of gradients
is multiplied by the inverses once, after the pass.

Gradients take the place of the mixtures Z, and residuals that of the weights W: an expert's arrays
are large, and fresh ones would add to the peak.
Source: docs/design.md, section Targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.factorization.activation import Activation
from globe_stream.factorization.adapters import AdapterFit
from globe_stream.kernels.coarse import Precision, coarse_bmm
from globe_stream.kernels.polar import nearly_orthonormal_rows
from globe_stream.kernels.reductions import frobenius_norms, squared_sums
from globe_stream.kernels.ridge import ridge_solve


@dataclass(frozen=True)
class PreconditionedGradient:
    """Negative gradients F (b, r, d) and weights L (b,)."""

    gradient: Tensor
    weight: Tensor


def orthonormal(
    weights: Tensor,
    mixtures: Tensor,
    fit: AdapterFit,
    activation: Activation,
    precision: Precision = "float32",
    mean: Tensor | None = None,
) -> PreconditionedGradient:
    """Towards S_i = Q_i W_i / ||W_i||, Q_i near the polar factor of Z_i W_i^T.

    weights (b, p, d), mixtures (b, r, d), which the gradient overwrites; metric identity, all
    weights one. Where phi is linear, Z W^T is at hand in `fit`. With `mean` T (r, d) rotations are
    those to T, which stays. Source: docs/design.md, section Warm-up.
    """
    if mean is not None:
        products = torch.matmul(mean, weights.mT)
    else:
        products = fit.projected.mT if activation.linear else torch.bmm(mixtures, weights.mT)
    target = coarse_bmm(nearly_orthonormal_rows(products, precision), weights, precision)
    norms = frobenius_norms(weights).clamp_min(torch.finfo(weights.dtype).tiny)
    torch.sub(target.div_(norms[:, None, None]), mixtures, out=mixtures)
    return PreconditionedGradient(mixtures, torch.ones_like(norms))


def surrogate(
    weights: Tensor,
    mixtures: Tensor,
    fit: AdapterFit,
    activation: Activation,
    damping: float,
    probes: Tensor,
    precision: Precision = "float32",
) -> PreconditionedGradient:
    """The gradient of the true loss, for the metric M.

    F_i = J o A_i^T (W_i - A_i H_i) with J = phi'(Z), and L_i = 4 `damping` tr(M^-1 gamma^2 A_i^T
    A_i) / r, the mean curvature, estimated as gamma^2 ||A_i P||^2 / r.

    Args:
        weights: W (b, p, d), overwritten with W - A H.
        mixtures: Z (b, r, d), overwritten with F.
        fit: of `weights` to `mixtures`.
        probes: P (r, k) with E[P P^T] = M^-1, see `Metric.probes`.
        precision: of A^T times the residual; the residual itself is float32.
    """
    residual = weights.baddbmm_(fit.adapters, fit.hidden, alpha=-1)
    seen = coarse_bmm(
        fit.adapters.mT, residual, precision, mixtures if activation.linear else None
    ).mul_(activation.gamma)
    if not activation.linear:
        activation.slope_(mixtures, fit.hidden).mul_(seen)
    energies = squared_sums(torch.matmul(fit.adapters, probes))
    mean = energies * (activation.gamma**2 / len(probes))
    # An expert without atoms has no curvature and no gradient: it stays where it is.
    weight = (4 * damping * mean).clamp_min(torch.finfo(mean.dtype).tiny)
    return PreconditionedGradient(mixtures, weight)


def pseudo_inverse(
    weights: Tensor,
    mixtures: Tensor,
    fit: AdapterFit,
    activation: Activation,
    ridge: float,
    weight: float = 1.0,
) -> PreconditionedGradient:
    """Towards S_i = (A_i^T A_i + ridge)^-1 A_i^T W_i / gamma, least squares targets.

    weights (b, p, d), mixtures (b, r, d), overwritten with W - A H and the gradient. Metric
    identity; every expert goes 1 / `weight` of the way. Not monotone with weight one: it ignores
    that errors are seen through A_i.
    Where the activation bends, its slope is divided out of the displacement, bounded below.
    """
    adapters = fit.adapters
    curvature = torch.bmm(adapters.mT, adapters)
    residual = weights.baddbmm_(adapters, fit.hidden, alpha=-1)
    projected = torch.bmm(residual.mT, adapters)
    move = ridge_solve(curvature, projected, ridge).solution.mT
    if activation.linear:
        torch.div(move, activation.gamma, out=mixtures)
    else:
        slope = activation.slope_(mixtures, fit.hidden).clamp_min_(0.1).mul_(activation.gamma)
        torch.div(move, slope, out=mixtures)
    weights_of_all = torch.full((len(move),), weight, dtype=move.dtype, device=move.device)
    return PreconditionedGradient(mixtures, weights_of_all)


def blended(
    start: PreconditionedGradient, aware: PreconditionedGradient, beta: float
) -> PreconditionedGradient:
    """(1 - beta) of the way to the warm-up's targets and beta to the weight-aware ones.

    Both in the identity metric, the result's weights being one; the arrays of `aware` are used up.
    Source: docs/design.md, section Targets.
    """
    move = aware.gradient.div_(aware.weight[:, None, None])
    torch.lerp(start.gradient, move, beta, out=move)
    return PreconditionedGradient(move, start.weight)
