"""Where each expert's mixture should move: a force in the dual space and its weight.

A direction says that mixture Z_i wants to move by M^-1 F_i C^-1 / L_i, with the metric M (r, r)
seen from the left, C (d, d) from the right and the weight L_i. Keeping the force F_i instead of
the displacement spares two large products an expert: coding needs only <B_j, F_i>, and the bank's
sum of forces is multiplied by the inverses once, after the pass.
Source: docs/design.md, section Targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.factorization.activation import Activation
from globe_stream.factorization.adapters import AdapterFit
from globe_stream.kernels.activation import blend_and_slope
from globe_stream.kernels.polar import polar_rows
from globe_stream.kernels.ridge import ridge_solve


@dataclass(frozen=True)
class PreconditionedGradient:
    """Forces F (b, r, d) and weights L (b,)."""

    gradient: Tensor
    weight: Tensor


def orthonormal(weights: Tensor, mixtures: Tensor) -> tuple[PreconditionedGradient, int]:
    """Towards S_i = Q_i W_i / ||W_i||, Q_i = polar(Z_i W_i^T): the warm-up's exact target.

    weights (b, p, d), mixtures (b, r, d); metric identity, all weights one. Also returns how many
    polar factors needed an exact fallback. Source: docs/design.md, section Warm-up.
    """
    polar = polar_rows(torch.bmm(mixtures, weights.mT))
    target = torch.bmm(polar.rows, weights)
    norms = torch.linalg.matrix_norm(weights).clamp_min(torch.finfo(weights.dtype).tiny)
    gradient = target.div_(norms[:, None, None]).sub_(mixtures)
    return PreconditionedGradient(gradient, torch.ones_like(norms)), polar.fallbacks


def surrogate(
    weights: Tensor,
    mixtures: Tensor,
    fit: AdapterFit,
    activation: Activation,
    damping: float,
    metric_inverse: Tensor,
) -> tuple[PreconditionedGradient, Tensor]:
    """The gradient of the true loss as force, for the metric M given by its inverse (r, r).

    F_i = J o (A_i^T W_i - A_i^T A_i H_i) with J = phi'(gamma Z) gamma, and
    L_i = 4 `damping` tr(M^-1 gamma^2 A_i^T A_i) / r, the mean curvature. Also returns
    the batch's sum of gamma^2 A_i^T A_i (r, r), which makes the next metric.
    """
    adapters = fit.adapters
    curvature = torch.bmm(adapters.mT, adapters)
    gradient = torch.bmm(adapters.mT, weights)
    torch.baddbmm(gradient, curvature, fit.hidden, alpha=-1, out=gradient)
    if activation.linear:
        gradient.mul_(activation.gamma)
    else:
        _, slope = blend_and_slope(mixtures * activation.gamma, activation.name, activation.lam)
        gradient.mul_(slope.mul_(activation.gamma))
    curvature.mul_(activation.gamma**2)
    mean = (curvature * metric_inverse).sum((1, 2)) / curvature.shape[1]
    # An expert without atoms has no curvature, nor any force: it stays where it is.
    weight = (4 * damping * mean).clamp_min(torch.finfo(mean.dtype).tiny)
    return PreconditionedGradient(gradient, weight), curvature.sum(0)


def pseudo_inverse(
    weights: Tensor,
    mixtures: Tensor,
    fit: AdapterFit,
    activation: Activation,
    ridge: float,
    weight: float = 1.0,
) -> PreconditionedGradient:
    """Towards S_i = (A_i^T A_i + ridge)^-1 A_i^T W_i / gamma: the pseudo-inverse target.

    Metric identity; every expert goes 1 / `weight` of the way. Not monotone with weight one: it
    ignores that errors are seen through A_i.
    Where the activation bends, its slope is divided out of the displacement, bounded below.
    """
    adapters = fit.adapters
    curvature = torch.bmm(adapters.mT, adapters)
    residual = torch.baddbmm(weights, adapters, fit.hidden, alpha=-1)
    moving = torch.bmm(residual.mT, adapters)
    move = ridge_solve(curvature, moving, ridge).solution.mT.contiguous()
    if activation.linear:
        move.div_(activation.gamma)
    else:
        _, slope = blend_and_slope(mixtures * activation.gamma, activation.name, activation.lam)
        move.div_(slope.clamp_min(0.1).mul_(activation.gamma))
    return PreconditionedGradient(
        move, torch.full((len(move),), weight, dtype=move.dtype, device=move.device)
    )


def blended(
    start: PreconditionedGradient, aware: PreconditionedGradient, beta: float
) -> PreconditionedGradient:
    """(1 - beta) of the way to the warm-start targets and beta to the weight-aware ones.

    Both in the identity metric, the result's weights being one.
    Source: docs/design.md, section Targets.
    """
    move = aware.gradient / aware.weight[:, None, None]
    return PreconditionedGradient(torch.lerp(start.gradient, move, beta), start.weight)
