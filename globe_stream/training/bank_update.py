"""The dictionary step: MOD with momentum, unit-Frobenius atoms, codes that keep every product.

    V <- mu V + s (SA + lambda_B I)^-1 (F + D B),   B <- B + V - kappa (K - I) B / (l + sqrt(l))

with l the largest eigenvalue of K. The repulsion takes an eigenvalue e of K to
e (1 - kappa (e - 1) / (l + sqrt(l)))^2, so kappa = 1 takes the largest to one and none below zero.
Everything is a loop over tiles of rows. Source: docs/design.md, section Bank update.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from globe_stream.kernels.atoms import squared_norms, unit_mixture_scales
from globe_stream.kernels.ridge_effect import RidgeEffect, nonfinite, ridge_effect
from globe_stream.store.arrays import StoredTiles
from globe_stream.store.tiles import Tiles
from globe_stream.training.metric import Metric, plain_gram, precondition
from globe_stream.training.moments import EpochMoments


@dataclass(frozen=True)
class BankUpdateSettings:
    """The numbers of one step."""

    momentum: float
    ridge: float
    coherence: float  # kappa
    length: float = 1.0  # s


@dataclass(frozen=True)
class BankUpdate:
    """The bank after a step (in the tiles that held the forces) and what goes with it."""

    bank: Tiles
    momentum: Tiles
    codes: Tensor
    gram: Tensor  # (m, m) float64 of the new atoms
    ridge: RidgeEffect  # of lambda_B on SA
    nonfinite: int  # values of bank and momentum that are NaN or infinite
    largest_norm_change: float  # of an atom, before it was normalised
    revived: int  # atoms that no code used and that were replaced (0 or 1)


def update_bank(
    bank: Tiles,
    previous: StoredTiles | None,
    moments: EpochMoments,
    codes: Tensor,
    gram: Tensor,
    metric: Metric,
    settings: BankUpdateSettings,
    momentum_path: Path,
) -> BankUpdate:
    """Take the step that `sums` ask for.

    `bank` (m, r, d) and its `gram` (m, m) are the atoms the epoch ran with, `previous` the momentum
    of the last step or None, `codes` (N, m) the new codes. The new bank overwrites `sums.forces`;
    the new momentum is written to a file at `momentum_path`.

    An atom that no code uses is dead: the first of them becomes what the worst-explained expert's
    mixture should have been, and codes find it in the next epoch.
    """
    precondition(moments.gradients, metric)
    system = moments.code_moment + settings.ridge * moments.code_moment.diagonal().mean() * _eye(
        moments.code_moment
    )
    solver = settings.length * torch.linalg.inv(system)
    from_bank = (solver @ moments.code_change_moment).to(bank.device, torch.float32)
    from_gradient = solver.to(bank.device, torch.float32)
    repel = _repulsion(gram, settings.coherence).to(bank.device, torch.float32)
    momentum = Tiles(bank.shape, bank.tile_shape(0)[1], device=bank.device, path=momentum_path)
    squares = torch.zeros(bank.shape[0], dtype=torch.float64)
    broken = 0
    dead = (codes != 0).sum(0).eq(0).nonzero()[:1, 0]
    mixing = codes[moments.worst_position].to(bank.device)
    missing = metric.solve(moments.worst_step[None])[0] if dead.numel() else moments.worst_step
    for tile, (start, stop) in enumerate(bank.bounds):
        atoms = _flat(bank.load(tile))
        moved = from_gradient @ _flat(moments.gradients.load(tile)) + from_bank @ atoms
        if previous is not None:
            moved.add_(_flat(previous.load(tile)), alpha=settings.momentum)
        moved[dead] = 0
        momentum.store(tile, moved.view(bank.tile_shape(tile)))
        moved += atoms
        if settings.coherence:
            moved -= repel @ atoms
        moved[dead] = mixing @ atoms + missing[start:stop].reshape(-1)
        tile_squares = squared_norms(moved).double().cpu()
        if not bool(torch.isfinite(tile_squares).all()):
            broken += nonfinite(moved) + nonfinite(momentum.load(tile))
        squares += tile_squares
        moments.gradients.store(tile, moved.view(bank.tile_shape(tile)))
    norms = _usable(squares).sqrt()
    _divide(moments.gradients, norms)
    _divide(momentum, norms)
    new_gram = plain_gram(moments.gradients)
    kept = codes * norms.to(codes)
    kept = kept * unit_mixture_scales(kept, new_gram)[:, None].to(codes)
    return BankUpdate(
        moments.gradients,
        momentum,
        kept,
        new_gram,
        ridge_effect(moments.code_moment, settings.ridge),
        broken,
        float((norms - 1).abs().max()),
        dead.numel(),
    )


def _repulsion(gram: Tensor, coherence: float) -> Tensor:
    """kappa (K - I) / (l + sqrt(l)) (m, m) for K (m, m) with largest eigenvalue l."""
    if not coherence:
        return torch.zeros_like(gram)
    largest = float(torch.linalg.eigvalsh(gram)[-1])
    share: float = coherence / (largest + largest**0.5)
    return share * (gram - _eye(gram))


def _usable(squares: Tensor) -> Tensor:
    return torch.where(squares > torch.finfo(torch.float32).tiny, squares, 1.0)


def _divide(tiles: Tiles, norms: Tensor) -> None:
    scale = (1 / norms).float().to(tiles.device)[:, None, None]
    for tile, (_, values) in enumerate(tiles):
        tiles.store(tile, values.mul_(scale))


def _flat(tile: Tensor) -> Tensor:
    return tile.reshape(len(tile), -1)


def _eye(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype)
