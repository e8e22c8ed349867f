"""PCA of the proxies in Gram space, exact and randomised, with atoms for non-negative codes.

Source: docs/design.md, section Seeding methods; Halko, Martinsson, Tropp, "Finding Structure with
Randomness" (2011).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.errors import InputError, option
from globe_stream.kernels.gram import fix_signs
from globe_stream.seeding.methods.base import Atoms, SeedOptions, check_count, finish
from globe_stream.seeding.methods.gram_view import GramView

RANK_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Components:
    """Leading principal components ``u_j = sum_i P_ij x_i``, orthonormal, and their energies."""

    combination: Tensor  # P (N, k)
    values: Tensor  # (k,) eigenvalues of C, largest first


def gram_pca(view: GramView, count: int, options: SeedOptions) -> Atoms:
    """Atoms from the top eigenvectors of C: ``P = V Lambda^-1/2``, made fit for codes >= 0.

    Raises:
        InputError: more atoms than experts, or than the proxies span dimensions.
    """
    check_count(view, count)
    components = principal_components(view, count)
    return _atoms(view, components, options.config.pca_signs)


def randomized_pca(view: GramView, count: int, options: SeedOptions) -> Atoms:
    """The same from a randomised range finder, needing only products with C.

    Takes ``power_iterations + 1`` products with ``count + oversampling`` vectors and one with
    the atoms.

    Raises:
        InputError: more atoms than experts, or than the proxies span dimensions.
    """
    check_count(view, count)
    components = range_finder(view, count, options)
    view.remember(components.values)
    return _atoms(view, components, options.config.pca_signs)


def principal_components(view: GramView, count: int) -> Components:
    """The top `count` components from the eigenvectors of a dense C."""
    values, vectors = view.eigen()
    vectors = fix_signs(vectors[:, :count])
    return _scaled(vectors, values[:count])


def range_finder(view: GramView, count: int, options: SeedOptions) -> Components:
    """The top `count` components of X restricted to the range of ``X C^q Omega``.

    With ``Y = X Z`` the basis is ``Q = Y L^-T``, ``L L^T = Z^T C Z``, so that ``Q^T X`` is
    ``L^-1 (C Z)^T``; Z is orthonormalised between the power iterations.
    """
    width = min(count + options.config.oversampling, view.size)
    probe = torch.randn(view.size, width, generator=options.generator(), dtype=torch.float64)
    for _ in range(options.config.power_iterations):
        probe = torch.linalg.qr(view.matmul(torch.linalg.qr(probe)[0]))[0]
    probe = torch.linalg.qr(probe)[0]
    products = view.matmul(probe)
    inner = probe.T @ products
    energies, turn = torch.linalg.eigh((inner + inner.T) / 2)
    kept = energies > RANK_TOLERANCE * energies[-1]
    root = turn[:, kept] * energies[kept].rsqrt()  # Q = X Z root has orthonormal columns
    left, values, right = torch.linalg.svd(root.T @ products.T, full_matrices=False)
    _check_rank(values.square(), count)
    scores = right.T[:, :count]
    signs = (fix_signs(scores) * scores).sum(0).sign()
    return Components(probe @ root @ left[:, :count] * signs, values[:count].square())


def _scaled(vectors: Tensor, values: Tensor) -> Components:
    _check_rank(values, len(values))
    return Components(vectors * values.rsqrt(), values)


def _check_rank(values: Tensor, count: int) -> None:
    rank = int((values > RANK_TOLERANCE * values[0]).sum())
    if rank < count:
        raise InputError(
            f"PCA: {count} components asked of proxies that span {rank} dimensions; "
            f"give {option('bases')} {rank} or fewer"
        )


def _atoms(view: GramView, components: Components, signs: str) -> Atoms:
    combination = nonnegative(components, signs)
    stats = {
        "pca/largest": float(components.values[0]),
        "pca/smallest": float(components.values[-1]),
    }
    return finish(view, combination, stats)


def nonnegative(components: Components, signs: str) -> Tensor:
    """As many atoms as there are components, fit for non-negative codes: P (N, m).

    "flip" keeps the components, with the sign for which positive coefficients hold the most
    energy. "simplex" gives up the last component and points the m atoms at the vertices of a
    regular simplex in the span of the others: they sum to zero, so a constant may be added to
    any code, and every point of the span has an exact non-negative code.
    """
    count = components.combination.shape[1]
    if signs == "simplex" and count > 1:
        frame = simplex_frame(count)
        return components.combination[:, :-1] @ frame
    coefficients = components.combination * components.values  # <x_i, u_j>
    positive = coefficients.clamp_min(0).square().sum(0)
    negative = coefficients.clamp_max(0).square().sum(0)
    return components.combination * torch.where(positive >= negative, 1.0, -1.0)


def simplex_frame(count: int) -> Tensor:
    """Unit vectors (count - 1, count) from the centre to the vertices of a regular simplex."""
    rows = torch.arange(1, count, dtype=torch.float64)[:, None]
    columns = torch.arange(count, dtype=torch.float64)[None, :]
    helmert = torch.where(columns < rows, 1.0, torch.where(columns == rows, -rows, 0.0))
    return torch.nn.functional.normalize(torch.nn.functional.normalize(helmert, dim=1), dim=0)
