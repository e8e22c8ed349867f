"""The truncated SVD of single experts with as many parameters as the bank, which has to beat it.

The rank is `GroupSizes.svd_rank`. Everything is computed in float64 from the eigenvalues and
eigenvectors of the smaller Gram matrix, W W^T or W^T W: the error of rank k is
sum_{j > k} s_j^2 over sum_j s_j^2 and needs eigenvalues only. Source: docs/design.md, section
Problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.checkpoint.reader import Batch
from globe_stream.factorization.error_sums import ErrorSums, pooled
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.sizes import GroupSizes
from globe_stream.io.records import Scalars
from globe_stream.io.world import World
from globe_stream.store import arrays
from globe_stream.store.arrays import Loader

MAX_OPERATIONS = 5e11
MIN_EXPERTS = 8
ENERGIES = "svd_energies"
"""Name of the array of a group's `BaselineAccumulator.energies`."""


def sampled_experts(group: ExpertGroup) -> list[int]:
    """Positions of the experts whose spectra are computed: all, or an even sample of large ones."""
    sizes = group.sizes
    count = min(sizes.experts, max(MIN_EXPERTS, int(MAX_OPERATIONS / sizes.spectrum_operations)))
    return [k * sizes.experts // count for k in range(count)]


def seed_passes(group: ExpertGroup) -> int:
    """Passes of seeding over a group's experts.

    Statistics, proxies and measure; also the baseline where it reads every expert.
    """
    return 3 + (len(sampled_experts(group)) == group.sizes.experts)


class BaselineAccumulator:
    """Sums the energy that rank-k truncation keeps and loses, and that of every singular direction.

    `energies` (min(p, d),) float64 are squared singular values, largest first, over all experts.
    """

    def __init__(self, rank: int, side: int) -> None:
        self._rank = rank
        self.energies = torch.zeros(side, dtype=torch.float64)
        self._lost = 0.0
        self._whole = 0.0

    def update(self, batch: Batch) -> str:
        for matrix in batch.weights:
            energies = _energies(matrix)
            self.energies += energies.flip(0)
            self._lost += _discarded(energies, self._rank)
            self._whole += float(energies.sum())
        return f"SVD relF {self.relative_error:.4f}"

    def arrays(self) -> Mapping[str, arrays.Storable]:
        return {"energies": self.energies}

    def scalars(self) -> Scalars:
        return {"lost": self._lost, "whole": self._whole}

    def reduce(self, world: World, positions: Sequence[int]) -> None:
        del positions
        self.energies = torch.stack(world.gather(self.energies)).sum(0)
        every = world.gather((self._lost, self._whole))
        self._lost, self._whole = sum(lost for lost, _ in every), sum(whole for _, whole in every)

    def restore(self, load: Loader, scalars: Scalars) -> None:
        self.energies = torch.from_numpy(arrays.read(load("energies")))
        self._lost, self._whole = scalars["lost"], scalars["whole"]

    @property
    def relative_error(self) -> float:
        """relF of the truncated experts seen so far."""
        return ErrorSums(self._lost, self._whole).relative_error


@dataclass(frozen=True)
class Spectrum:
    """The squared singular values of a group's experts, as `BaselineAccumulator` sums them.

    `squared_norm` is that of all experts, of which `energies` may be a sample.
    """

    sizes: GroupSizes
    energies: Tensor
    squared_norm: float

    def errors(self, kept: float) -> ErrorSums:
        """Of every expert cut to the rank whose factors hold the share `kept` of its parameters."""
        p, d = self.sizes.p, self.sizes.d
        rank = int(kept * p * d / (p + d) + 1e-9)
        lost = float(self.energies[rank:].sum() / self.energies.sum())
        return ErrorSums(lost * self.squared_norm, self.squared_norm)


def svd_curve(spectra: Sequence[Spectrum]) -> list[tuple[float, float]]:
    """(parameters kept, relF) of the truncated SVD of all groups together, at every rank.

    Sizes are shares of the parameters replaced, up to all of them; ranks are those of the first.
    """
    if not spectra:
        return []
    p, d = spectra[0].sizes.p, spectra[0].sizes.d
    shares = [rank * (p + d) / (p * d) for rank in range(1, p * d // (p + d) + 1)]
    return [(kept, pooled(one.errors(kept) for one in spectra).relative_error) for kept in shares]


class SvdApproximation:
    """W_hat = U_k U_k^T W with the leading k = `rank` left singular vectors of each expert."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def replace(self, position: int, weights: Tensor) -> Tensor:
        """The best matrix of rank k (p, d) in the Frobenius norm; any `position` alike."""
        del position
        return truncate(weights, self._rank)


def truncate(weights: Tensor, rank: int) -> Tensor:
    """W (p, d) cut to rank `rank`, float32."""
    left, right = truncated_factors(weights, rank)
    return (left @ right).float()


def truncated_factors(weights: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (p, k) and (k, d) float64 of W (p, d) cut to rank k = `rank`.

    One of them has orthonormal columns or rows, that of the shorter side of W.
    """
    wide = _wide(weights)
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    leading = vectors[:, max(0, len(vectors) - rank) :]
    other = leading.T @ wide
    return (leading, other) if weights.shape == wide.shape else (other.T, leading.T)


def lost_energy(weights: Tensor, rank: int) -> float:
    """Squared Frobenius error of the best rank-`rank` matrix for W (p, d)."""
    return _discarded(_energies(weights), rank)


def _energies(weights: Tensor) -> Tensor:
    """Squared singular values (min(p, d),) float64 of W (p, d), ascending."""
    wide = _wide(weights)
    values: Tensor = torch.linalg.eigvalsh(wide @ wide.T)
    return values.clamp_min(0)


def _discarded(energies: Tensor, rank: int) -> float:
    return float(energies[: max(0, len(energies) - rank)].sum())


def _wide(weights: Tensor) -> Tensor:
    """W or W^T, whichever has no more rows than columns, float64 on the CPU."""
    exact = weights.cpu().double()
    return exact if exact.shape[0] <= exact.shape[1] else exact.T
