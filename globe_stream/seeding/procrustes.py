"""A common right factor of experts that differ by left rotations: generalised Procrustes analysis.

An adapter absorbs any rotation of its expert's rows, so two experts may hold the same factor in
different rotations, and a basis A0 shared by all of them then mixes what belongs together. The
Procrustes mean T (r, d) is the mean of the experts, each rotated to lie nearest to it:
S_i = Q_i W_i / ||W_i|| with Q_i = polar(T W_i^T); the proxies are the S_i. T is updated after
every expert, T <- T + (S_i - T) / k, so that one pass makes it and the batch does not matter.
Source: Gower, "Generalized Procrustes analysis" (1975); docs/design.md, section Warm-up, for the
rotation ambiguity.
"""

import torch
from torch import Tensor

from globe_stream.factorization.adapters import fitted_together
from globe_stream.kernels.polar import nearly_orthonormal_rows
from globe_stream.kernels.reductions import frobenius_norms


def top_left(matrix: Tensor, rank: int) -> Tensor:
    """The first r left singular vectors of W (p, d) as columns (p, r), by W W^T in float64."""
    double = matrix.cpu().double()
    vectors: Tensor = torch.linalg.eigh(double @ double.T).eigenvectors
    return vectors[:, -rank:].flip(1).to(matrix.dtype).to(matrix.device)


def rotated(weights: Tensor, procrustes_mean: Tensor) -> Tensor:
    """Q_i W_i (b, r, d), Q_i (r, p) nearly orthonormal, near T (r, d), for W (b, p, d)."""
    turned = weights.new_empty(len(weights), *procrustes_mean.shape)
    together = fitted_together(*procrustes_mean.shape)
    for start in range(0, len(weights), together):
        part = weights[start : start + together]
        rotations = nearly_orthonormal_rows(torch.matmul(procrustes_mean, part.mT))
        torch.bmm(rotations, part, out=turned[start : start + together])
    return turned


class ProcrustesMean:
    """The running Procrustes mean T (r, d) and how many experts it has seen."""

    def __init__(self, rank: int, width: int, device: torch.device) -> None:
        self.mean = torch.zeros(rank, width, device=device)
        self.count = 0

    def add(self, matrix: Tensor) -> None:
        """Take in one expert W (p, d). The first sets the rotation; one of zeros is passed over."""
        norm = frobenius_norms(matrix)
        if not float(norm):
            return
        if self.count:
            nearest = rotated(matrix[None], self.mean)[0]
        else:
            nearest = top_left(matrix, len(self.mean)).T @ matrix
        self.count += 1
        self.mean += (nearest / norm - self.mean) / self.count
