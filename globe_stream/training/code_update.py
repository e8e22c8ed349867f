"""New codes for a batch: non-negative least squares, then at most a wanted support.

Source: docs/design.md, section Coding.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from globe_stream.factorization.code_statistics import median_support
from globe_stream.kernels.entmax import entmax
from globe_stream.kernels.nnls import nnls

ALPHA = {"entmax": 1.5, "sparsemax": 2.0, "softmax": 1.0}

_BISECTIONS = 30


@dataclass(frozen=True)
class Coding:
    """How codes are found in one epoch."""

    steps: int = 10
    sparse: bool = False
    mapping: str = "entmax"
    temperature: float = 1.0
    prune: float = 1e-3
    cap: int | None = None
    l1: float = 0.0


@dataclass(frozen=True)
class SolvedCodes:
    """New codes, and how many were above zero before pruning, entmax and cap chose supports."""

    codes: Tensor  # (b, m), dtype and device of the start
    candidates: int


def solve_codes(gram: Tensor, linear: Tensor, start: Tensor, settings: Coding) -> SolvedCodes:
    """Codes (b, m) >= 0 for K (m, m) and b (b, m), from `start` (b, m).

    A few accelerated steps, so that codes move with the bank rather than ahead of it. With
    `settings.sparse`, the shares alpha / sum alpha go through entmax at the temperature; what
    survives the pruning and the cap is the support, on which the values are refitted. Otherwise
    codes below `settings.prune` of an expert's largest become zero.
    """
    if settings.l1:
        linear = linear - settings.l1 * gram.diagonal().mean()
    codes = nnls(gram, linear, start=start, max_iterations=settings.steps, polish=False).codes
    candidates = int((codes > 0).sum())
    if not settings.sparse:
        kept = codes >= settings.prune * codes.amax(1, keepdim=True)
        pruned = torch.where(kept, codes, 0.0)
        return SolvedCodes(pruned.to(start.dtype).to(start.device), candidates)
    kept = support(codes, settings)
    begin = torch.where(kept, codes, 0.0)
    refit = nnls(
        gram, linear, start=begin, mask=kept, max_iterations=2 * settings.steps, polish=False
    )
    return SolvedCodes(refit.codes.to(start.dtype).to(start.device), candidates)


def support(codes: Tensor, settings: Coding) -> Tensor:
    """Which codes (b, m) survive entmax, the pruning threshold and the cap; boolean.

    An expert always keeps its largest code.
    """
    shares = codes / codes.sum(1, keepdim=True).clamp_min(torch.finfo(codes.dtype).tiny)
    scores = shares.clamp_min(1e-12).log() / settings.temperature
    weights = entmax(scores, ALPHA[settings.mapping])
    kept = (weights > settings.prune * weights.amax(1, keepdim=True)) & (codes > 0)
    if settings.cap is not None and settings.cap < codes.shape[1]:
        top = codes.topk(settings.cap, dim=1).indices
        kept &= torch.zeros_like(kept).scatter_(1, top, True)
    kept.scatter_(1, codes.argmax(1, keepdim=True), True)
    return kept


def first_temperature(
    codes: Tensor, target: float, settings: Coding, low: float, high: float
) -> float:
    """The least temperature in [low, high] that leaves `codes` (N, m) the wanted median support.

    Where they have less to begin with, the least that prunes nothing from the median expert. The
    control law starts from here, so that the first epochs do not prune far too much.
    """
    wanted = min(target, median_support(codes))

    def kept(temperature: float) -> float:
        return median_support(support(codes, replace(settings, temperature=temperature)))

    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if kept(middle) >= wanted else (middle, high)
    return high


def next_temperature(
    temperature: float, median_support: float, target: float, rate: float, low: float, high: float
) -> float:
    """T <- clamp(T exp(-rate (median / target - 1))): larger T means larger support.

    Without the minus sign the law is positive feedback and runs away.
    Source: docs/design.md, section Coding.
    """
    change = -rate * (median_support / target - 1)
    factor = float(torch.tensor(min(max(change, -2.0), 2.0)).exp())
    return min(max(temperature * factor, low), high)
