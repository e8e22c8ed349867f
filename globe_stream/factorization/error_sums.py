"""Relative Frobenius errors, ||W_hat - W||_F / ||W||_F, of one expert or of many together.

Over many experts squared errors and squared norms are summed first, so an expert counts by its
norm; relative errors are never averaged. Source: docs/design.md, section Problem.
"""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class ErrorSums:
    """Sums of ||W_hat - W||_F^2 and of ||W||_F^2 over some experts."""

    squared_error: float = 0.0
    squared_norm: float = 0.0

    @classmethod
    def of(cls, squared_errors: Tensor, squared_norms: Tensor) -> Self:
        """Of experts with these squared errors (N,) and squared norms (N,)."""
        return cls(float(squared_errors.sum()), float(squared_norms.sum()))

    @classmethod
    def from_relative(cls, relative_error: float, squared_norm: float) -> Self:
        """Of experts whose relative error and squared norm were recorded."""
        return cls(relative_error**2 * squared_norm, squared_norm)

    def __add__(self, other: "ErrorSums") -> "ErrorSums":
        return ErrorSums(
            self.squared_error + other.squared_error, self.squared_norm + other.squared_norm
        )

    @property
    def relative_error(self) -> float:
        """relF; of experts that are zero, 0 if they are reproduced and infinity otherwise."""
        if self.squared_norm > 0:
            return math.sqrt(max(0.0, self.squared_error) / self.squared_norm)
        return math.inf if self.squared_error > 0 else 0.0


def pooled(parts: Iterable[ErrorSums]) -> ErrorSums:
    """All of `parts` together."""
    return sum(parts, ErrorSums())


def pooled_by(parts: Iterable[tuple[Key, ErrorSums]]) -> dict[Key, ErrorSums]:
    """The parts of each key together, in the order in which the keys first occur."""
    sums: dict[Key, ErrorSums] = {}
    for key, part in parts:
        sums[key] = sums.get(key, ErrorSums()) + part
    return sums


def by_layer(squared_errors: Tensor, squared_norms: Tensor, layers: Tensor) -> dict[int, ErrorSums]:
    """The sums of every layer, ascending, for experts (N,) in `layers` (N,)."""
    return {
        layer: ErrorSums.of(squared_errors[layers == layer], squared_norms[layers == layer])
        for layer in torch.unique(layers).tolist()
    }


def by_expert(squared_errors: Tensor, squared_norms: Tensor) -> Tensor:
    """relF (N,) of each expert from squared errors (N,) and squared norms (N,)."""
    relative = (squared_errors.clamp_min(0) / squared_norms).sqrt()
    return torch.where((squared_norms == 0) & (squared_errors == 0), 0.0, relative)
