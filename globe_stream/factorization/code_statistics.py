"""What codes and atoms look like, as the metrics that every stage logs.

Source: docs/design.md, section Codes.
"""

from dataclasses import dataclass

import torch
from pydantic import JsonValue
from torch import Tensor

from globe_stream.io.records import Record
from globe_stream.kernels.atoms import coherence

PANEL_ROWS = 512
"""Experts handled together, so that no (N, N) array is made."""
DEAD_SHARE = 1e-6
"""An atom whose share of every expert's code stays below this counts as dead."""


@dataclass(frozen=True)
class CodeStatistics(Record):
    """Supports, entropy, popularity and overlap of codes; norms and coherence of the atoms.

    `popularity` (m,) is the number of experts that use an atom, `zero_fraction` the share of the
    N m codes that are zero, `support_error` the median support less the one that was asked for.
    """

    median_support: float
    mean_support: float
    p95_support: float
    support_error: float | None
    entropy: float
    zero_fraction: float
    support_overlap: float
    popularity: tuple[int, ...]
    dead_atoms: int
    norm_min: float
    norm_max: float
    coherence: float
    coherence_offdiag_max: float

    def metrics(self) -> dict[str, JsonValue]:
        """By their published names."""
        return {
            "alpha/median_support": self.median_support,
            "alpha/mean_support": self.mean_support,
            "alpha/p95_support": self.p95_support,
            "alpha/support_error": self.support_error,
            "alpha/entropy": self.entropy,
            "alpha/zero_fraction": self.zero_fraction,
            "alpha/support_overlap": self.support_overlap,
            "alpha/popularity": list(self.popularity),
            "alpha/dead_atoms": self.dead_atoms,
            "bank/norm_min": self.norm_min,
            "bank/norm_max": self.norm_max,
            "bank/coherence": self.coherence,
            "bank/coherence_offdiag_max": self.coherence_offdiag_max,
        }


def code_statistics(codes: Tensor, gram: Tensor, target: float | None = None) -> CodeStatistics:
    """The statistics of codes over atoms with Gram matrix `gram`.

    codes (N, m) non-negative; gram (m, m) = <B_j, B_k>; `target` the wanted median support.
    """
    used = codes != 0
    support = used.sum(1).double()
    entropy, largest = _share_statistics(codes)
    median = median_support(codes)
    norms = gram.diagonal().clamp_min(0).sqrt()
    likeness = coherence(gram)
    return CodeStatistics(
        median_support=median,
        mean_support=float(support.mean()),
        p95_support=float(support.quantile(0.95)),
        support_error=None if target is None else median - target,
        entropy=entropy,
        zero_fraction=float(1 - used.double().mean()),
        support_overlap=support_overlap(used),
        popularity=tuple(used.sum(0).tolist()),
        dead_atoms=int((largest < DEAD_SHARE).sum()),
        norm_min=float(norms.min()),
        norm_max=float(norms.max()),
        coherence=likeness.off_diagonal_norm,
        coherence_offdiag_max=likeness.off_diagonal_max,
    )


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


def support_stability(old: Tensor, new: Tensor) -> float:
    """Mean Jaccard similarity of every expert's supports before and after, codes (N, m) each."""
    before, after = old != 0, new != 0
    common = (before & after).sum(1).double()
    union = (before | after).sum(1).double()
    return float(torch.where(union > 0, common / union.clamp_min(1), 1.0).mean())


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
