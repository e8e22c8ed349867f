"""What a bank and codes say about a batch of experts: mixtures, adapters and the error.

    Z_i = sum_j alpha_ij B_j,   H_i = phi(gamma Z_i),   A_i = W_i H_i^T (H_i H_i^T + ridge)^-1

Used alike by seeding (the initial error), training (every epoch) and export (the adapters).
Source: method.md sections 1 and 4, steps 1 to 3; warm-start guidelines, section G.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.kernels.activation import blend
from globe_stream.kernels.ridge import RidgeResult, ridge_solve
from globe_stream.kernels.workspace import Workspace
from globe_stream.store.tiles import Tiles

# Below this squared relative error the expanded formula loses digits to cancellation.
_CANCELLATION = 1e-3


@dataclass(frozen=True)
class Activation:
    """phi(x) = (1 - lam) g x + lam act(g x) with g = `gamma`; act is silu, tanh or none."""

    name: str = "none"
    lam: float = 0.0
    gamma: float = 1.0

    @property
    def linear(self) -> bool:
        """Whether it is the identity up to `gamma`."""
        return self.name == "none" or self.lam == 0.0

    def apply(self, mixtures: Tensor) -> Tensor:
        """H (b, r, d) from Z (b, r, d)."""
        scaled = mixtures * self.gamma
        return scaled if self.linear else blend(scaled, self.name, self.lam)


@dataclass(frozen=True)
class AdapterFit:
    """Adapters of a batch and what they achieve; squared norms are of the normalised weights."""

    hidden: Tensor  # H (b, r, d)
    hidden_gram: Tensor  # H H^T (b, r, r)
    solve: RidgeResult  # adapters (b, p, r) and how they were found
    squared_error: Tensor  # (b,) float64

    @property
    def adapters(self) -> Tensor:
        """A (b, p, r)."""
        return self.solve.solution


def compose(codes: Tensor, bank: Tiles, workspace: Workspace, name: str = "mixtures") -> Tensor:
    """Z (b, r, d) = sum_j codes (b, m)_j B_j, in workspace buffer `name`."""
    _, r, d = bank.shape
    mixtures = workspace.take(name, (len(codes), r, d))
    for (start, stop), tile in bank:
        rows = mixtures[:, start:stop].view(len(codes), -1)
        torch.mm(codes, tile.reshape(tile.shape[0], -1), out=rows)
    return mixtures


def fit_adapters(
    weights: Tensor, mixtures: Tensor, activation: Activation, ridge: float
) -> AdapterFit:
    """Refit the adapters of W (b, p, d) to Z (b, r, d) and measure the error."""
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

    ||W||^2 - 2 <A, W H^T> + <A H H^T, A>. Source: method.md section 4, step 3.
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
