"""Norms, scale and coherence of atoms, from the atoms (tile by tile) or from their Gram."""

from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.kernels.reductions import squared_sums


@dataclass(frozen=True, slots=True)
class Coherence:
    """How far unit-norm atoms are from being orthonormal."""

    off_diagonal_norm: float  # ||B~^T B~ - I||_F
    off_diagonal_max: float  # largest |<B~_j, B~_k>|, j != k


def squared_norms(tile: Tensor) -> Tensor:
    """Sums of squares (m,) of an (m, rows, d) tile of a bank; add them up over the tiles.

    float64, except on MPS.
    """
    if tile.device.type == "mps":
        return squared_sums(tile.reshape(tile.shape[0], -1, tile.shape[-1]))
    flat = tile.reshape(tile.shape[0], -1)
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return norms.square()


def unit_scales(squares: Tensor) -> Tensor:
    """Factors 1 / ||B_j|| (m,) that make atoms unit-Frobenius; one for an atom that is zero.

    Source: docs/design.md, section Bank update.
    """
    norms = squares.sqrt()
    return torch.where(norms > 0, 1.0 / norms.clamp_min(torch.finfo(norms.dtype).tiny), 1.0)


def unit_mixture_scales(codes: Tensor, atom_gram: Tensor) -> Tensor:
    """Factors (b,) that make ``||sum_j a_ij B_j||_F`` one; one for a zero mixture.

    Args:
        codes: (b, m).
        atom_gram: K (m, m) = <B_j, B_k>.

    Source: docs/design.md, section Codes (their scale is redundant with the adapter).
    """
    wide = codes.to(atom_gram.dtype)
    return unit_scales(((wide @ atom_gram) * wide).sum(1).clamp_min(0))


def coherence(atom_gram: Tensor) -> Coherence:
    """Coherence of the normalised atoms from K (m, m); zero atoms count as orthogonal.

    Source: docs/design.md, section Bank update.
    """
    scales = unit_scales(atom_gram.diagonal())
    unit = atom_gram * scales[:, None] * scales[None, :]
    unit = unit - torch.diag(unit.diagonal())
    largest = float(unit.abs().max()) if unit.shape[0] > 1 else 0.0
    return Coherence(float(torch.linalg.matrix_norm(unit)), largest)
