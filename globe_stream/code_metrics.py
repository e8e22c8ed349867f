"""What codes and atoms look like, as the metrics that every stage logs.

Source: warm-start guidelines, section K; bank workflow, section 5.
"""

from typing import Any

import torch
from torch import Tensor

from globe_stream.kernels.atoms import coherence

DEAD_SHARE = 1e-6
"""An atom whose share of every expert's code stays below this counts as dead."""


def code_values(codes: Tensor, gram: Tensor, target: float | None = None) -> dict[str, Any]:
    """Supports, entropy, popularity, overlap and coherence.

    codes (N, m) non-negative; gram (m, m) = <B_j, B_k>; `target` the wanted median support.
    """
    used = codes != 0
    support = used.sum(1).double()
    shares = codes.abs().double() / codes.abs().sum(1, keepdim=True).clamp_min(1e-300).double()
    median = float(support.median())
    popularity = used.sum(0)
    norms = gram.diagonal().clamp_min(0).sqrt()
    likeness = coherence(gram)
    return {
        "alpha/median_support": median,
        "alpha/mean_support": float(support.mean()),
        "alpha/p95_support": float(support.quantile(0.95)),
        "alpha/support_error": None if target is None else median - target,
        "alpha/entropy": float(torch.special.entr(shares).sum(1).mean()),
        "alpha/pruned_fraction": float(1 - used.double().mean()),
        "alpha/support_overlap": support_overlap(used),
        "alpha/popularity": popularity.tolist(),
        "alpha/dead_atoms": int((shares.amax(0) < DEAD_SHARE).sum()),
        "bank/norm_min": float(norms.min()),
        "bank/norm_max": float(norms.max()),
        "bank/coherence": likeness.off_diagonal_norm,
        "bank/coherence_offdiag_max": likeness.off_diagonal_max,
    }


def support_overlap(used: Tensor) -> float:
    """Mean Jaccard similarity of the supports (N, m) of different experts."""
    members = used.double()
    count = len(members)
    if count < 2:
        return 1.0
    common = members @ members.T
    sizes = members.sum(1)
    union = (sizes[:, None] + sizes[None, :] - common).clamp_min(1)
    similarity = common / union
    return float((similarity.sum() - similarity.diagonal().sum()) / (count * (count - 1)))
