"""First codes of the proxies in Gram space, and how good they are.

Source: docs/design.md, section Codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.kernels.nnls import nnls
from globe_stream.seeding.methods.gram_view import GramView

PSEUDO_INVERSE_TOLERANCE = 1e-10
TOLERANCE = 1e-9
PANEL = 1024
"""Proxies whose errors are computed together."""


@dataclass(frozen=True)
class FittedCodes:
    """Codes of the unit-norm proxies on the atoms, and how well they fit."""

    codes: Tensor  # (N, m) float64, non-negative
    atom_gram: Tensor  # K (m, m) = <B_j, B_k>
    errors: Tensor  # (N,) relative error of each proxy, ||x_i - sum_j a_ij B_j||
    kkt_residual: float  # largest of any code; see `NnlsResult`

    @property
    def relative_error(self) -> float:
        """||X - X P A^T||_F / ||X||_F over all proxies."""
        return float(self.errors.square().mean().sqrt())


def codes_from_gram(view: GramView, combination: Tensor, kind: str = "nnls") -> FittedCodes:
    """Fit ``x_i ~ sum_j a_ij B_j`` with ``a_i >= 0`` from ``K = P^T C P`` and ``b_i = (C P)_i``.

    Args:
        view: of the unit-norm proxies.
        combination: P (N, m), atoms in terms of proxies.
        kind: "nnls"; "simplex" (codes also sum to one); "ls_clamp" (least squares, then zero
            for the negative entries: quick and much worse unless the atoms are orthonormal).
    """
    linear = view.matmul(combination)
    gram = combination.T @ linear
    gram = (gram + gram.T) / 2
    residual = 0.0
    if kind == "ls_clamp":
        inverse = torch.linalg.pinv(gram, rtol=PSEUDO_INVERSE_TOLERANCE, hermitian=True)
        codes = (linear @ inverse).clamp_min(0)
    else:
        solved = nnls(gram, linear, simplex=kind == "simplex", tolerance=TOLERANCE)
        codes, residual = solved.codes, float(solved.kkt_residual.max())
    left = torch.cat(
        [
            1 + (own * (own @ gram - 2 * products)).sum(1)
            for own, products in zip(
                torch.split(codes, PANEL), torch.split(linear, PANEL), strict=True
            )
        ]
    )
    return FittedCodes(codes, gram, left.clamp_min(0).sqrt(), residual)
