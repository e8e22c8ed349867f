"""First codes of the proxies in Gram space, and how good they are.

Source: docs/design.md, section Codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.errors import InputError
from globe_stream.kernels.atoms import Coherence, coherence
from globe_stream.kernels.nnls import nnls
from globe_stream.seeding.methods.gram_view import GramView

KINDS = ("nnls", "simplex", "ls_clamp")
PSEUDO_INVERSE_TOLERANCE = 1e-10
TOLERANCE = 1e-9


@dataclass(frozen=True)
class FittedCodes:
    """Codes of the unit-norm proxies on the atoms, and their quality."""

    codes: Tensor  # (N, m) float64, non-negative
    atom_gram: Tensor  # K (m, m) = <B_j, B_k>
    relative_error: float  # ||X - X P A^T||_F / ||X||_F over all proxies
    errors: Tensor  # (N,) relative error of each proxy
    support: Tensor  # (N,) int64, atoms each code uses
    popularity: Tensor  # (m,) int64, codes that use each atom
    coherence: Coherence


def codes_from_gram(view: GramView, combination: Tensor, kind: str = "nnls") -> FittedCodes:
    """Fit ``x_i ~ sum_j a_ij B_j`` with ``a_i >= 0`` from ``K = P^T C P`` and ``b_i = (C P)_i``.

    Args:
        view: of the unit-norm proxies.
        combination: P (N, m), atoms in terms of proxies.
        how: "nnls"; "simplex" (codes also sum to one); "ls_clamp" (least squares, then zero
            for the negative entries: quick and much worse unless the atoms are orthonormal).

    Raises:
        InputError: an unknown `how`.
    """
    if kind not in KINDS:
        raise InputError(f"codes: {kind!r} is unknown; use nnls, simplex or ls_clamp")
    linear = view.matmul(combination)
    gram = combination.T @ linear
    gram = (gram + gram.T) / 2
    if kind == "ls_clamp":
        inverse = torch.linalg.pinv(gram, rtol=PSEUDO_INVERSE_TOLERANCE, hermitian=True)
        codes = (linear @ inverse).clamp_min(0)
    else:
        codes = nnls(gram, linear, simplex=kind == "simplex", tolerance=TOLERANCE).codes
    left = (1 + (codes * (codes @ gram - 2 * linear)).sum(1)).clamp_min(0)
    used = codes > 0
    return FittedCodes(
        codes=codes,
        atom_gram=gram,
        relative_error=float(left.mean().sqrt()),
        errors=left.sqrt(),
        support=used.sum(1),
        popularity=used.sum(0),
        coherence=coherence(gram),
    )
