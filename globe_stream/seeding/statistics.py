"""First pass: what normalisation and every kind of proxies need, all at once.

Sums are kept for the raw weights; the normalised quantities follow exactly from them, since
normalisation is affine: sum (W - mu)(W - mu)^T = G - mu (s 1^T + 1 s^T) + N d mu^2 1 1^T with
s the row sums. The consensus is of the raw weights: the mean is a rank-one trifle in it.
Source: bank workflow, step 2; warm-start guidelines, sections A and B.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from globe_stream.checkpoint.experts import Expert
from globe_stream.checkpoint.reader import Batch
from globe_stream.errors import InputError
from globe_stream.seeding.procrustes import SAMPLE, Consensus
from globe_stream.store import arrays
from globe_stream.engine.stream import Loader

MEAN_SHARE = 0.01
"""Means smaller than this part of the deviation are no offset but chance."""


@dataclass(frozen=True)
class Normalisation:
    """W~ = (W - mean) / scale, one pair for a whole unit."""

    mean: float
    scale: float

    def apply_(self, weights: Tensor) -> Tensor:
        """Normalise `weights` in place."""
        return weights.sub_(self.mean).div_(self.scale)


@dataclass(frozen=True)
class Statistics:
    """What the first pass found; sums are float64 and of the raw weights."""

    norms: Tensor  # (N,) squared Frobenius norm of each expert
    row_sum: Tensor  # (p,) sum over experts and columns
    subset_energy: Tensor  # (p,) squared sum over the row-selection subset
    subset_sum: Tensor  # (p,) sum over the row-selection subset
    left_gram: Tensor | None  # (p, p) sum of W W^T
    consensus: Tensor | None  # (r, d), generalised Procrustes
    count: int  # experts
    subset: int  # experts in the row-selection subset
    width: int  # d

    def normalisation(self, kind: str) -> Normalisation:
        """Mean and standard deviation over all elements of the unit, or the identity.

        A mean below `MEAN_SHARE` of the deviation is left in the weights: adapters and bank carry
        it with the rest, while taking it out adds a rank-one term that no adapter carries.
        """
        if kind == "none":
            return Normalisation(0.0, 1.0)
        elements = self.count * len(self.row_sum) * self.width
        mean = float(self.row_sum.sum()) / elements
        variance = float(self.norms.sum()) / elements - mean * mean
        if variance <= 0:
            raise InputError("all weights of the selected experts are equal: nothing to compress")
        if mean * mean <= MEAN_SHARE**2 * variance:
            return Normalisation(0.0, (variance + mean * mean) ** 0.5)
        return Normalisation(mean, variance**0.5)

    def normalised_norms(self, by: Normalisation, sums: Tensor) -> Tensor:
        """(N,) squared norms of the normalised experts, from each expert's sum (N,)."""
        size = len(self.row_sum) * self.width
        return (self.norms - 2 * by.mean * sums + size * by.mean**2) / by.scale**2

    def row_energy(self, by: Normalisation) -> Tensor:
        """(p,) energy of each row over the subset, normalised."""
        cells = self.subset * self.width
        centred = self.subset_energy - 2 * by.mean * self.subset_sum + cells * by.mean**2
        return centred / by.scale**2

    def normalised_left_gram(self, by: Normalisation) -> Tensor:
        """(p, p) sum of W~ W~^T."""
        assert self.left_gram is not None
        cross = by.mean * (self.row_sum[:, None] + self.row_sum[None, :])
        centred = self.left_gram - cross + self.count * self.width * by.mean**2
        return centred / by.scale**2


class StatisticsAccumulator:
    """Gathers `Statistics`, with what the `kinds` of proxies of rank r = `rank` need."""

    def __init__(
        self,
        experts: list[Expert],
        subset: frozenset[int],
        kinds: Collection[str],
        rank: int,
        device: torch.device,
    ) -> None:
        p, self._width = experts[0].shape
        left_gram = "left_gram" in kinds
        self._count = len(experts)
        self._subset = subset
        # Devices without float64 accumulate there in float32 and add up here, batch by batch.
        self._sums = {
            name: torch.zeros(len(experts), dtype=torch.float64) for name in ("norms", "sums")
        }
        self._sums |= {
            name: torch.zeros(p, dtype=torch.float64)
            for name in ("row_sum", "subset_energy", "subset_sum")
        }
        self._product = torch.empty(p, p, device=device) if left_gram else None
        if left_gram:
            self._sums["left_gram"] = torch.zeros(p, p, dtype=torch.float64)
        self._consensus = Consensus(rank, self._width, device) if "procrustes" in kinds else None
        self._asked = frozenset(evenly(len(experts), SAMPLE))

    @property
    def expert_sums(self) -> Tensor:
        """(N,) sum of each expert's elements."""
        return self._sums["sums"]

    def update(self, batch: Batch) -> str:
        weights = batch.weights
        energy = torch.linalg.vector_norm(weights, dim=2).double().cpu().square()
        total = weights.sum(2).double().cpu()
        self._sums["norms"][batch.positions] = energy.sum(1)
        self._sums["sums"][batch.positions] = total.sum(1)
        self._sums["row_sum"] += total.sum(0)
        chosen = [k for k, position in enumerate(batch.positions) if position in self._subset]
        self._sums["subset_energy"] += energy[chosen].sum(0)
        self._sums["subset_sum"] += total[chosen].sum(0)
        if self._product is not None:
            for matrix in weights:
                torch.mm(matrix, matrix.T, out=self._product)
                self._sums["left_gram"] += self._product.cpu()
        if self._consensus is not None:
            for matrix, position in zip(weights, batch.positions, strict=True):
                if position in self._asked:
                    self._consensus.add(matrix)
        return ""

    def arrays(self) -> Mapping[str, arrays.Source]:
        if self._consensus is None:
            return dict(self._sums)
        return {**self._sums, "consensus": self._consensus.mean}

    def scalars(self) -> dict[str, Any]:
        return {} if self._consensus is None else {"consensus_count": self._consensus.count}

    def restore(self, load: Loader, scalars: Mapping[str, Any]) -> None:
        for name in self._sums:
            self._sums[name] = torch.from_numpy(arrays.read(load(name)))
        if self._consensus is not None:
            self._consensus.mean.copy_(torch.from_numpy(arrays.read(load("consensus"))))
            self._consensus.count = scalars["consensus_count"]

    def result(self) -> Statistics:
        """The statistics of all experts seen."""
        kept = {name: values for name, values in self._sums.items() if name != "sums"}
        return Statistics(
            left_gram=kept.pop("left_gram", None),
            consensus=None if self._consensus is None else self._consensus.mean,
            count=self._count,
            subset=len(self._subset),
            width=self._width,
            **kept,
        )


def evenly(total: int, count: int) -> list[int]:
    """`count` of `total` positions, evenly spaced; all of them when there are fewer."""
    kept = min(count, total)
    return [k * total // kept for k in range(kept)]
