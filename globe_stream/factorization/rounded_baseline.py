"""What the bank is compared with at few bits a weight: experts, or their SVDs, rounded to nearest.

Source: docs/measurements.md, section Beside quantization.
"""

from torch import Tensor

from globe_stream.factorization.reconstruction import Approximation
from globe_stream.factorization.sizes import GroupSizes
from globe_stream.factorization.svd_baseline import truncated_factors
from globe_stream.kernels.nearest import round_to_nearest, rounded_bits


class Unchanged:
    """The expert itself."""

    def replace(self, position: int, weights: Tensor) -> Tensor:
        """`weights` (p, d)."""
        del position
        return weights


class Rounded:
    """Another approximation with its result rounded to nearest, along d."""

    def __init__(self, inner: Approximation, bits: int) -> None:
        self._inner = inner
        self._bits = bits

    def replace(self, position: int, weights: Tensor) -> Tensor:
        """The rounded replacement (p, d) float32 of expert `position`."""
        return round_to_nearest(self._inner.replace(position, weights), self._bits)


class RoundedSvd:
    """The truncated SVD of each expert, both factors rounded to nearest, along p and along d.

    Each carries the root of the singular values, so that errors in both weigh alike.
    """

    def __init__(self, rank: int, bits: int) -> None:
        self._rank = rank
        self._bits = bits

    def replace(self, position: int, weights: Tensor) -> Tensor:
        """The replacement (p, d) float32; any `position` alike."""
        del position
        left, right = truncated_factors(weights, self._rank)
        balance = (right.norm(dim=1) / left.norm(dim=0)).sqrt()
        tall = round_to_nearest((left * balance).T.float(), self._bits)
        wide = round_to_nearest((right / balance[:, None]).float(), self._bits)
        return tall.T @ wide


def matrix_bits(sizes: GroupSizes, bits: int) -> float:
    """Stored bits a weight of experts that are rounded themselves."""
    return rounded_bits(sizes.p, sizes.d, bits) / (sizes.p * sizes.d)


def svd_bits(sizes: GroupSizes, bits: int | None, itemsize: int) -> float:
    """Stored bits a weight of the SVD of equal size, in `bits` or in elements of `itemsize`."""
    if bits is None:
        return 8 * itemsize * sizes.svd_ratio
    rank = sizes.svd_rank
    stored = rounded_bits(rank, sizes.p, bits) + rounded_bits(rank, sizes.d, bits)
    return stored / (sizes.p * sizes.d)
