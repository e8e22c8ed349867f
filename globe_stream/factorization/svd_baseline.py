"""The equal-parameter truncated SVD, which a bank has to beat.

Each expert on its own, rank k with as many parameters as adapters and bank share out. The error
needs singular values only: sum_{j > k} s_j^2 over sum_j s_j^2, s_j^2 being the eigenvalues of
W W^T in float64. Source: docs/design.md, section Problem.
"""

from collections.abc import Mapping
from typing import Any

import torch

from globe_stream.checkpoint.reader import Batch
from globe_stream.factorization.groups import ExpertGroup, GroupSizes
from globe_stream.store import arrays
from globe_stream.store.arrays import Loader

MAX_OPERATIONS = 5e11
MIN_EXPERTS = 8


def sampled_experts(group: ExpertGroup) -> list[int]:
    """Positions of the experts whose spectra are computed: all, or an even sample of large ones."""
    sizes = group.sizes
    count = min(sizes.experts, max(MIN_EXPERTS, int(MAX_OPERATIONS / operations(sizes))))
    return [k * sizes.experts // count for k in range(count)]


def seed_passes(group: ExpertGroup) -> int:
    """Passes of seeding over the unit's experts: statistics, proxies, measure; where the
    baseline reads every expert, that too.
    """
    return 3 + (len(sampled_experts(group)) == group.sizes.experts)


def operations(sizes: GroupSizes) -> float:
    """Floating-point operations of one expert: the Gram, then its eigenvalues."""
    return 2.0 * sizes.p**2 * sizes.d + 4 / 3 * sizes.p**3


class BaselineAccumulator:
    """Sums the energy that rank-k truncation keeps and loses."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._lost = 0.0
        self._whole = 0.0

    def update(self, batch: Batch) -> str:
        for matrix in batch.weights:
            values = torch.linalg.eigvalsh((matrix @ matrix.T).cpu().double()).clamp_min(0)
            self._lost += float(values[: max(0, len(values) - self._rank)].sum())
            self._whole += float(values.sum())
        return f"SVD relF {self.relative_error:.4f}"

    def arrays(self) -> Mapping[str, arrays.Storable]:
        return {}

    def scalars(self) -> dict[str, Any]:
        return {"lost": self._lost, "whole": self._whole}

    def restore(self, load: Loader, scalars: Mapping[str, Any]) -> None:
        del load
        self._lost, self._whole = scalars["lost"], scalars["whole"]

    @property
    def relative_error(self) -> float:
        """relF of the truncated experts seen so far."""
        return (self._lost / self._whole) ** 0.5 if self._whole else 0.0
