"""The affine normalization of a group's weights, W~ = (W - mean) / scale.

Source: docs/design.md, section Normalization.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from globe_stream.errors import InputError

MEAN_SHARE = 0.01
"""A mean smaller than this share of the standard deviation is not taken out."""


@dataclass(frozen=True)
class Normalization:
    """W~ = (W - mean) / scale, one mean and scale for all elements of a group."""

    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def from_sums(cls, total: float, squares: float, elements: int) -> Self:
        """Mean and standard deviation, from the sum and the squared sum of all elements.

        A mean below `MEAN_SHARE` of the deviation is left in the weights: adapters and bank carry
        it with the rest, while taking it out adds a rank-one term that no adapter carries.
        Raises InputError when all elements are equal.
        """
        mean = total / elements
        variance = squares / elements - mean * mean
        if variance <= 0:
            raise InputError("all weights of the selected experts are equal: nothing to compress")
        if mean * mean <= MEAN_SHARE**2 * variance:
            return cls(0.0, (variance + mean * mean) ** 0.5)
        return cls(mean, variance**0.5)

    def apply_(self, weights: Tensor) -> Tensor:
        """Normalize `weights` in place."""
        return weights.sub_(self.mean).div_(self.scale)

    def undo_(self, weights: Tensor) -> Tensor:
        """The inverse of `apply_`, in place."""
        return weights.mul_(self.scale).add_(self.mean)
