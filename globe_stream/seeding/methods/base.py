"""What a seeding method is given and returns."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import JsonValue
from torch import Tensor

from globe_stream.config import SeedConfig
from globe_stream.engine.progress import ProgressCall
from globe_stream.errors import InputError, option
from globe_stream.seeding.methods.gram_view import GramView

PSEUDO_INVERSE_TOLERANCE = 1e-10
SMALLEST_SQUARED_NORM = 1e-14


@dataclass(frozen=True)
class SeedOptions:
    """What a method goes by: the run's options, of which it uses its own, and a bar."""

    config: SeedConfig
    progress: ProgressCall | None = None  # of the rounds: done, at most, and the error

    def generator(self) -> torch.Generator:
        """A fresh generator for the seed."""
        return torch.Generator().manual_seed(self.config.seed)


@dataclass(frozen=True)
class Atoms:
    """Unit-norm atoms ``B_j = sum_i P_ij x_i`` as combinations of unit-norm proxies."""

    combination: Tensor  # P (N, m) float64
    explained_variance: float  # share of the proxies' energy that lies in the span of the atoms
    stats: Mapping[str, JsonValue]


def check_count(view: GramView, count: int) -> None:
    """Refuse a number of atoms outside 1 to N."""
    if not 1 <= count <= view.size:
        raise InputError(
            f"seeding: {count} bases asked of {view.size} experts; "
            f"give {option('bases')} from 1 to {view.size}"
        )


def finish(view: GramView, combination: Tensor, stats: Mapping[str, JsonValue]) -> Atoms:
    """Scale every atom to unit norm and measure what their span explains.

    Raises:
        InputError: an atom is zero up to rounding.
    """
    products = view.matmul(combination)
    squares = (combination * products).sum(0)
    dead = int((squares <= SMALLEST_SQUARED_NORM * combination.square().sum(0)).sum())
    if dead:
        raise InputError(
            f"seeding: {dead} of {combination.shape[1]} atoms vanish: the proxies span too few "
            f"dimensions; ask for at most {combination.shape[1] - dead} bases"
        )
    scales = squares.rsqrt()
    combination, products = combination * scales, products * scales
    return Atoms(combination, span_energy(combination, products) / view.size, stats)


def span_energy(combination: Tensor, products: Tensor) -> float:
    """``tr(K^+ (C P)^T (C P))``, the energy of the proxies' projections on the atoms' span."""
    gram = combination.T @ products
    inverse = torch.linalg.pinv((gram + gram.T) / 2, rtol=PSEUDO_INVERSE_TOLERANCE, hermitian=True)
    return float((inverse * (products.T @ products)).sum())
