"""One epoch: every expert once, the state measured and the next one prepared.

For each batch: compose, refit the adapters, measure, find the direction, solve the codes, add to
the sums. The measured error is that of the bank and codes the epoch began with.
Source: docs/design.md, section Alternating minimization.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.checkpoint.reader import Batch
from globe_stream.factorization.activation import Activation
from globe_stream.factorization.adapters import AdapterFit, fit_adapters, fitted_together
from globe_stream.factorization.compose import compose
from globe_stream.factorization.measure import ErrorLog
from globe_stream.factorization.normalization import Normalization
from globe_stream.factorization.spot_check import check_products
from globe_stream.io.records import Scalars
from globe_stream.io.world import World
from globe_stream.kernels.coarse import Precision
from globe_stream.kernels.double import widened
from globe_stream.kernels.reductions import add_product
from globe_stream.kernels.ridge import ridge_solve
from globe_stream.kernels.workspace import Workspace
from globe_stream.memory.operations import PROBES, metric_stride
from globe_stream.store import arrays
from globe_stream.store.arrays import Loader
from globe_stream.store.tiles import Tiles
from globe_stream.training import gradients as directions
from globe_stream.training.code_update import Coding, solve_codes
from globe_stream.training.gradients import PreconditionedGradient
from globe_stream.training.metric import Metric
from globe_stream.training.moments import EpochMoments


@dataclass(frozen=True)
class EpochSettings:
    """The plain numbers that the schedule chose for one epoch."""

    epoch: int  # epochs before it, which say what experts enter the metric
    targets: str  # "surrogate" or "pinv"
    beta: float  # share of these targets; the rest are the warm-start's orthonormal ones
    activation: Activation
    damping: float  # c of the surrogate's weight
    coding_share: float  # of the bank's step that the codes aim at
    coding: Coding
    ridge: float  # of the adapters
    target_ridge: float  # of the pinv targets
    target_weight: float  # 1 / the part of the way to the pinv targets
    precision: Precision = "float32"  # of products that may be coarse


class EpochAccumulator:
    """Carries one epoch through the experts of a group.

    `initial` T (r, d) is the mean that the warm-up's targets are rotated to, where they are those
    of the warm start.
    """

    def __init__(
        self,
        bank: Tiles,
        codes: Tensor,
        gram: Tensor,
        metric: Metric,
        moments: EpochMoments,
        settings: EpochSettings,
        normalization: Normalization,
        norms: Tensor,
        initial: Tensor | None = None,
    ) -> None:
        self._bank = bank
        self._initial = initial
        self._codes = codes
        self._gram = gram
        self.metric = metric
        self._settings = settings
        self._normalization = normalization
        self._workspace = Workspace(bank.device)
        self._stride = metric_stride(len(codes))
        self.moments = moments
        self.new_codes = codes.clone()
        self.log = ErrorLog(norms, normalization.scale, settings.ridge)
        self.candidates = 0  # codes above zero before pruning
        _, r, d = bank.shape
        self._together = fitted_together(r, d)
        self._probes = metric.probes(PROBES)

    def update(self, batch: Batch) -> str:
        weights = self._normalization.apply_(batch.weights)
        old = self._codes[batch.positions].to(weights)
        mixtures = compose(old, self._bank, self._workspace)
        preconditioned, errors = self._gradients(batch.positions, weights, mixtures)
        linear = self._linear(old, preconditioned)
        solved = solve_codes(self._gram, linear, old, self._settings.coding)
        new = solved.codes
        self.candidates += solved.candidates
        self.new_codes[batch.positions] = new.cpu()
        self.moments.add(preconditioned, old, new)
        self.moments.note_worst(batch.positions, errors, preconditioned)
        return f"relF {self.log.relative_error:.4f}"

    def _gradients(
        self, positions: list[int], weights: Tensor, mixtures: Tensor
    ) -> tuple[PreconditionedGradient, Tensor]:
        """Gradients in place of the mixtures (b, r, d), and the squared errors (b,).

        The weights (b, p, d) are used up.
        """
        scales, errors = mixtures.new_empty(len(mixtures)), []
        for start in range(0, len(mixtures), self._together):
            part = slice(start, start + self._together)
            fit = fit_adapters(
                weights[part], mixtures[part], self._settings.activation, self._settings.ridge
            )
            check_products(positions[part], weights[part], fit)
            self.log.add(positions[part], fit)
            self._sample(positions[part], fit)
            scales[part] = self._preconditioned(weights[part], mixtures[part], fit).weight
            errors.append(fit.squared_error)
        return PreconditionedGradient(mixtures, scales), torch.cat(errors)

    def arrays(self) -> Mapping[str, arrays.Storable]:
        return {
            **self.moments.arrays(),
            "codes": self.new_codes,
            "squared_errors": self.log.squared_errors,
        }

    def scalars(self) -> Scalars:
        return {
            **self.moments.scalars(),
            **self.log.scalars(),
            "candidates": self.candidates,
        }

    def reduce(self, world: World, positions: Sequence[int]) -> None:
        """See `Accumulator`; the gradients stay apart until the bank's step sums them."""
        self.moments.reduce(world)
        world.fill_(self.new_codes, positions)
        self.log.reduce(world, positions)
        (self.candidates,) = world.totals([self.candidates])

    def restore(self, load: Loader, scalars: Scalars) -> None:
        self.moments.restore(load, scalars)
        self.new_codes = torch.from_numpy(arrays.read(load("codes")))
        self.log.restore(torch.from_numpy(arrays.read(load("squared_errors"))), scalars)
        self.candidates = int(scalars["candidates"])

    def _preconditioned(
        self, weights: Tensor, mixtures: Tensor, fit: AdapterFit
    ) -> PreconditionedGradient:
        """Towards S = (1 - beta) S_L + beta S_W; the gradient overwrites the mixtures."""
        settings = self._settings
        if settings.beta == 1.0:
            return self._weight_aware(weights, mixtures, fit)
        start = directions.orthonormal(
            weights,
            mixtures if settings.beta == 0.0 else mixtures.clone(),
            fit,
            settings.activation,
            settings.precision,
            self._initial,
        )
        if settings.beta == 0.0:
            return start
        aware = self._weight_aware(weights, mixtures, fit)
        return directions.blended(start, aware, settings.beta)

    def _weight_aware(
        self, weights: Tensor, mixtures: Tensor, fit: AdapterFit
    ) -> PreconditionedGradient:
        settings = self._settings
        if settings.targets == "pinv":
            return directions.pseudo_inverse(
                weights,
                mixtures,
                fit,
                settings.activation,
                settings.target_ridge,
                settings.target_weight,
            )
        return directions.surrogate(
            weights,
            mixtures,
            fit,
            settings.activation,
            settings.damping,
            self._probes,
            settings.precision,
        )

    def _linear(self, old: Tensor, preconditioned: PreconditionedGradient) -> Tensor:
        """b (b, m): <B_j, M S_i C> with S_i the part of the way that the codes aim at."""
        moving = torch.zeros(len(old), self._bank.shape[0], device=old.device)
        for (start, stop), tile in self._bank:
            rows = preconditioned.gradient[:, start:stop].reshape(len(old), -1)
            add_product(moving, rows, tile.reshape(len(tile), -1))
        moving *= (self._settings.coding_share / preconditioned.weight)[:, None]
        wide = widened(old)
        return wide @ self._gram.to(wide.device) + widened(moving)

    def _sample(self, positions: list[int], fit: AdapterFit) -> None:
        """Add gamma^2 A^T A and H^T (H H^T)^-1 H of every so many experts to their sums.

        The next epoch takes the experts after these.
        """
        moments, gamma = self.moments, self._settings.activation.gamma
        for k, position in enumerate(positions):
            if position % self._stride == self._settings.epoch % self._stride:
                hidden, adapters = fit.hidden[k : k + 1], fit.adapters[k]
                columns = ridge_solve(fit.hidden_gram[k : k + 1], hidden.mT, self._settings.ridge)
                moments.row_projector.addmm_(columns.solution[0], hidden[0])
                moments.adapter_moment.addmm_(adapters.mT, adapters, alpha=gamma**2)
                moments.sampled += 1
