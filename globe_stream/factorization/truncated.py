"""The truncated SVD of single experts: the baseline that a bank has to beat."""

import torch
from torch import Tensor


class SvdApproximation:
    """W_hat = U_k U_k^T W with the leading k left singular vectors of each expert."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def replace(self, position: int, weights: Tensor) -> Tensor:
        """The best matrix of rank k (p, d) in the Frobenius norm."""
        del position
        return truncate(weights, self._rank)


def truncate(weights: Tensor, rank: int) -> Tensor:
    """W (p, d) cut to rank `rank`, by the eigenvectors of the smaller Gram matrix in float64."""
    wide = weights.shape[0] <= weights.shape[1]
    exact = (weights if wide else weights.T).double()
    _, vectors = torch.linalg.eigh(exact @ exact.T)
    leading = vectors[:, max(0, len(vectors) - rank) :]
    cut: Tensor = (leading @ (leading.T @ exact)).float()
    return cut if wide else cut.T.contiguous()


def lost_energy(weights: Tensor, rank: int) -> float:
    """Squared Frobenius error of the best rank-`rank` matrix: the discarded squared spectrum."""
    wide = weights.shape[0] <= weights.shape[1]
    exact = (weights if wide else weights.T).double()
    energies = torch.linalg.eigvalsh(exact @ exact.T).clamp_min(0)
    return float(energies[: max(0, len(energies) - rank)].sum())
