"""Sparse alternatives to softmax: alpha-entmax for alpha 1, 1.5 and 2."""

import torch
from torch import Tensor

from globe_stream.errors import GlobeError, InputError

ALPHAS = (1.0, 1.5, 2.0)


def entmax(scores: Tensor, alpha: float = 1.5) -> Tensor:
    """Map scores to a sparse probability vector along the last axis.

    The result is ``argmax_p <p, s> + H_alpha(p)`` over the simplex, that is
    ``p = [(alpha - 1) s - tau]_+ ^ (1 / (alpha - 1))`` with tau such that p sums to one:
    softmax for alpha 1, sparsemax for alpha 2. Exact (by sorting), not iterative.

    Args:
        scores: (..., m) floating; -inf marks an entry that must get zero.
        alpha: 1, 1.5 or 2.

    Returns:
        (..., m) in the dtype of ``scores``, non-negative, each row summing to one.

    Raises:
        InputError: another alpha.
        GlobeError: a row without a finite largest score (all -inf, +inf or NaN).

    Source: Peters, Niculae, Martins, "Sparse Sequence-to-Sequence Models" (2019); docs/design.md,
    section Coding.
    """
    if alpha not in ALPHAS:
        raise InputError(f"entmax: alpha is {alpha}; it must be one of 1, 1.5 and 2")
    largest = scores.amax(dim=-1, keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        raise GlobeError("entmax: a row of scores has no finite largest entry (all -inf, or NaN)")
    shifted = scores - largest
    if alpha == 1.0:
        return torch.softmax(shifted, dim=-1)
    if alpha == 2.0:
        return (shifted - _sparsemax_threshold(shifted)).clamp_min(0)
    halved = shifted / 2
    return (halved - _entmax15_threshold(halved)).clamp_min(0).square()


def _ranks(values: Tensor) -> Tensor:
    return torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)


def _support_threshold(taus: Tensor, ordered: Tensor) -> Tensor:
    """Pick tau_k for the largest k whose k-th score still exceeds it; shapes (..., m)."""
    support = (taus <= ordered).sum(dim=-1, keepdim=True).clamp_min(1)
    return taus.gather(-1, support - 1)


def _sparsemax_threshold(shifted: Tensor) -> Tensor:
    """Tau with sum_j [s_j - tau]_+ = 1, for rows whose largest score is zero."""
    # tau >= -1, so scores below -1 never count and may be raised to -1 (also -inf).
    ordered = shifted.clamp_min(-1).sort(dim=-1, descending=True).values
    taus = (ordered.cumsum(dim=-1) - 1) / _ranks(ordered)
    return _support_threshold(taus, ordered)


def _entmax15_threshold(halved: Tensor) -> Tensor:
    """Tau with sum_j [s_j - tau]_+^2 = 1, for rows whose largest (halved) score is zero."""
    ordered = halved.clamp_min(-1).sort(dim=-1, descending=True).values
    ranks = _ranks(ordered)
    mean = ordered.cumsum(dim=-1) / ranks
    spread = ordered.square().cumsum(dim=-1) - ranks * mean.square()
    taus = mean - ((1 - spread) / ranks).clamp_min(0).sqrt()
    return _support_threshold(taus, ordered)
