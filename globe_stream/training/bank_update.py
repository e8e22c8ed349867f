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

from globe_stream.io.world import ALONE, World
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
    """The bank after a step (in the tiles that held the gradients) and what goes with it."""

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
    previous: Tiles | StoredTiles | None,
    moments: EpochMoments,
    codes: Tensor,
    gram: Tensor,
    metric: Metric,
    settings: BankUpdateSettings,
    momentum_path: Path,
    world: World = ALONE,
) -> BankUpdate:
    """Take the step that `moments` ask for.

    `bank` (m, r, d) and its `gram` (m, m) are the atoms the epoch ran with, `previous` the momentum
    of the last step or None, `codes` (N, m) the new codes. The new bank overwrites
    `moments.gradients`; the new momentum is written to a file at `momentum_path`.

    An atom that no code uses is dead: the first of them becomes what the worst-explained expert's
    mixture should have been, and codes find it in the next epoch.
    """
    precondition(moments.gradients, metric, world)
    step = _Step.of(moments, codes, gram, metric, settings, bank.device)
    momentum = Tiles(bank.shape, bank.tile_shape(0)[1], device=bank.device, path=momentum_path)
    squares, broken = _take(step, bank, previous, moments.gradients, momentum)
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
        step.dead.numel(),
    )


@dataclass(frozen=True)
class _Step:
    """What moves every tile of rows of the bank alike, all but `dead` on the bank's device."""

    on_gradient: Tensor  # (m, m) s (SA + lambda_B I)^-1
    on_bank: Tensor  # (m, m) s (SA + lambda_B I)^-1 D
    repulsion: Tensor | None  # (m, m), None without
    momentum: float
    dead: Tensor  # (0 or 1,) the first atom that no code uses
    worst_code: Tensor  # (m,) of the worst-explained expert
    worst_step: Tensor  # (r, d) that its mixture lacks

    @staticmethod
    def of(
        moments: EpochMoments,
        codes: Tensor,
        gram: Tensor,
        metric: Metric,
        settings: BankUpdateSettings,
        device: torch.device,
    ) -> "_Step":
        moment = moments.code_moment
        system = moment + settings.ridge * moment.diagonal().mean() * _eye(moment)
        solver = settings.length * torch.linalg.inv(system)
        repulsion = _repulsion(gram, settings.coherence) if settings.coherence else None
        dead = (codes != 0).sum(0).eq(0).nonzero()[:1, 0]
        missing = moments.worst_step
        return _Step(
            solver.to(device, torch.float32),
            (solver @ moments.code_change_moment).to(device, torch.float32),
            None if repulsion is None else repulsion.to(device, torch.float32),
            settings.momentum,
            dead,
            codes[moments.worst_position].to(device),
            metric.solve(missing[None])[0] if dead.numel() else missing,
        )

    def displacement(self, gradient: Tensor, atoms: Tensor, last: Tensor | None) -> Tensor:
        """The new momentum (m, rows d) of a tile, from its `gradient`, `atoms` and `last` one."""
        moved = self.on_gradient @ gradient + self.on_bank @ atoms
        if last is not None:
            moved.add_(last, alpha=self.momentum)
        moved[self.dead] = 0
        return moved

    def moved(self, displacement: Tensor, atoms: Tensor, start: int, stop: int) -> Tensor:
        """The new atoms (m, rows d) of the rows `start` to `stop`; overwrites `displacement`."""
        moved = displacement.add_(atoms)
        if self.repulsion is not None:
            moved -= self.repulsion @ atoms
        moved[self.dead] = self.worst_code @ atoms + self.worst_step[start:stop].reshape(-1)
        return moved


def _take(
    step: _Step,
    bank: Tiles,
    previous: Tiles | StoredTiles | None,
    gradients: Tiles,
    momentum: Tiles,
) -> tuple[Tensor, int]:
    """Write the new bank over `gradients` and fill `momentum`, tile by tile.

    Returns the squared norms (m,) float64 of the new atoms and how many values are not finite.
    """
    squares = torch.zeros(bank.shape[0], dtype=torch.float64)
    broken = 0
    for tile, (start, stop) in enumerate(bank.bounds):
        atoms = _flat(bank.load(tile))
        last = None if previous is None else _flat(previous.load(tile))
        moved = step.displacement(_flat(gradients.load(tile)), atoms, last)
        momentum.store(tile, moved.view(bank.tile_shape(tile)))
        moved = step.moved(moved, atoms, start, stop)
        tile_squares = squared_norms(moved).cpu().double()
        if not bool(torch.isfinite(tile_squares).all()):
            broken += nonfinite(moved) + nonfinite(momentum.load(tile))
        squares += tile_squares
        gradients.store(tile, moved.view(bank.tile_shape(tile)))
    return squares, broken


def _repulsion(gram: Tensor, coherence: float) -> Tensor:
    """kappa (K - I) / (l + sqrt(l)) (m, m) for K (m, m) with largest eigenvalue l."""
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
