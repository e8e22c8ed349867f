"""What codes and atoms look like, as the metrics that every stage logs.

Source: docs/design.md, section Codes.
"""

from typing import Any

import torch
from torch import Tensor

from globe_stream.kernels.atoms import coherence

PANEL_ROWS = 512
"""Experts handled together, so that no (N, N) array is made."""
DEAD_SHARE = 1e-6
"""An atom whose share of every expert's code stays below this counts as dead."""


def code_values(codes: Tensor, gram: Tensor, target: float | None = None) -> dict[str, Any]:
    """Supports, entropy, popularity, overlap and coherence.

    codes (N, m) non-negative; gram (m, m) = <B_j, B_k>; `target` the wanted median support.
    """
    used = codes != 0
    support = used.sum(1).double()
    entropy, largest = _share_statistics(codes)
    median = median_support(codes)
    popularity = used.sum(0)
    norms = gram.diagonal().clamp_min(0).sqrt()
    likeness = coherence(gram)
    return {
        "alpha/median_support": median,
        "alpha/mean_support": float(support.mean()),
        "alpha/p95_support": float(support.quantile(0.95)),
        "alpha/support_error": None if target is None else median - target,
        "alpha/entropy": entropy,
        "alpha/pruned_fraction": float(1 - used.double().mean()),
        "alpha/support_overlap": support_overlap(used),
        "alpha/popularity": popularity.tolist(),
        "alpha/dead_atoms": int((largest < DEAD_SHARE).sum()),
        "bank/norm_min": float(norms.min()),
        "bank/norm_max": float(norms.max()),
        "bank/coherence": likeness.off_diagonal_norm,
        "bank/coherence_offdiag_max": likeness.off_diagonal_max,
    }


def median_support(codes: Tensor) -> float:
    """Median number of non-zero codes (N, m) of an expert; midway between two middle ones."""
    return float((codes != 0).sum(1).double().quantile(0.5))


def _share_statistics(codes: Tensor) -> tuple[float, Tensor]:
    """Mean entropy of the shares |a_ij| / sum_j |a_ij|, and each atom's largest share (m,)."""
    entropy, largest = 0.0, torch.zeros(codes.shape[1], dtype=torch.float64)
    for panel in torch.split(codes, PANEL_ROWS):
        shares = panel.abs().double()
        shares /= shares.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        entropy += float(torch.special.entr(shares).sum())
        largest = torch.maximum(largest, shares.amax(0))
    return entropy / len(codes), largest


def support_overlap(used: Tensor) -> float:
    """Mean Jaccard similarity of the supports (N, m) of different experts, panel by panel."""
    members, count = used.float(), len(used)
    if count < 2:
        return 1.0
    sizes, total = members.sum(1).double(), 0.0
    for panel, own in zip(
        torch.split(members, PANEL_ROWS), torch.split(sizes, PANEL_ROWS), strict=True
    ):
        common = (panel @ members.T).double()
        union = (own[:, None] + sizes[None, :] - common).clamp_min(1)
        total += float((common / union).sum())
    with_itself = int((sizes > 0).sum())
    return (total - with_itself) / (count * (count - 1))
