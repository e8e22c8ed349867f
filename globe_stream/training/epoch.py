"""One epoch: every expert once, the state measured and the next one prepared.

For each batch: compose, refit the adapters, measure, find the direction, solve the codes, add to
the sums. The measured error is that of the bank and codes the epoch began with.
Source: docs/design.md, section Alternating minimization.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.checkpoint.reader import Batch
from globe_stream.factorization.activation import Activation
from globe_stream.factorization.adapters import AdapterFit, fit_adapters
from globe_stream.factorization.compose import compose
from globe_stream.factorization.measure import ErrorLog
from globe_stream.factorization.normalization import Normalization
from globe_stream.io.records import Scalars
from globe_stream.kernels.ridge import ridge_solve
from globe_stream.kernels.workspace import Workspace
from globe_stream.store import arrays
from globe_stream.store.arrays import Loader
from globe_stream.store.tiles import Tiles
from globe_stream.training import gradients as directions
from globe_stream.training.code_update import Coding, solve_codes
from globe_stream.training.gradients import PreconditionedGradient
from globe_stream.training.metric import Metric
from globe_stream.training.moments import EpochMoments

PROJECTOR_SAMPLES = 64
"""Experts whose row spaces make the right metric C; a mean over this many is accurate enough."""


@dataclass(frozen=True)
class EpochSettings:
    """The plain numbers that the schedule chose for one epoch."""

    targets: str  # "surrogate" or "pinv"
    beta: float  # share of these targets; the rest are the warm-start's orthonormal ones
    activation: Activation
    damping: float  # c of the surrogate's weight
    coding_share: float  # of the bank's step that the codes aim at
    coding: Coding
    ridge: float  # of the adapters
    target_ridge: float  # of the pinv targets
    target_weight: float  # 1 / the part of the way to the pinv targets


class EpochAccumulator:
    """Carries one epoch through the experts of a unit."""

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
    ) -> None:
        self._bank = bank
        self._codes = codes
        self._gram = gram
        self.metric = metric
        self._how = settings
        self._normalization = normalization
        self._workspace = Workspace(bank.device)
        self._stride = max(1, -(-len(codes) // PROJECTOR_SAMPLES))
        self.moments = moments
        self.new_codes = codes.clone()
        self.log = ErrorLog(norms, normalization.scale)
        self.polar_fallbacks = 0

    def update(self, batch: Batch) -> str:
        weights = self._normalization.apply_(batch.weights)
        old = self._codes[batch.positions].to(weights)
        mixtures = compose(old, self._bank, self._workspace)
        fit = fit_adapters(weights, mixtures, self._how.activation, self._how.ridge)
        self.log.add(batch.positions, fit.squared_error, fit.solve)
        self._sample_row_projector(batch.positions, fit)
        preconditioned = self._preconditioned(weights, mixtures, fit)
        new = solve_codes(self._gram, self._linear(old, preconditioned), old, self._how.coding)
        self.new_codes[batch.positions] = new.cpu()
        self.moments.add(preconditioned, old, new)
        self.moments.note_worst(batch.positions, fit.squared_error, preconditioned)
        return f"relF {self.log.relative_error:.4f}"

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
            "polar_fallbacks": self.polar_fallbacks,
        }

    def restore(self, load: Loader, scalars: Scalars) -> None:
        self.moments.restore(load, scalars)
        self.new_codes = torch.from_numpy(arrays.read(load("codes")))
        self.log.restore(torch.from_numpy(arrays.read(load("squared_errors"))), scalars)
        self.polar_fallbacks = int(scalars["polar_fallbacks"])

    def _preconditioned(
        self, weights: Tensor, mixtures: Tensor, fit: AdapterFit
    ) -> PreconditionedGradient:
        """Towards S = (1 - beta) S_L + beta S_W, and the sum for the next metric."""
        settings = self._how
        if settings.beta == 1.0:
            return self._weight_aware(weights, mixtures, fit)
        start, fallbacks = directions.orthonormal(weights, mixtures)
        self.polar_fallbacks += fallbacks
        if settings.beta == 0.0:
            self.moments.adapter_moment += settings.activation.gamma**2 * _adapter_moment(fit)
            return start
        aware = self._weight_aware(weights, mixtures, fit)
        return directions.blended(start, aware, settings.beta)

    def _weight_aware(
        self, weights: Tensor, mixtures: Tensor, fit: AdapterFit
    ) -> PreconditionedGradient:
        settings = self._how
        if settings.targets == "pinv":
            self.moments.adapter_moment += settings.activation.gamma**2 * _adapter_moment(fit)
            return directions.pseudo_inverse(
                weights,
                mixtures,
                fit,
                settings.activation,
                settings.target_ridge,
                settings.target_weight,
            )
        preconditioned, adapter_moment = directions.surrogate(
            weights, mixtures, fit, settings.activation, settings.damping, self.metric.left_inverse
        )
        self.moments.adapter_moment += adapter_moment
        return preconditioned

    def _linear(self, old: Tensor, preconditioned: PreconditionedGradient) -> Tensor:
        """b (b, m): <B_j, M S_i C> with S_i the part of the way that the codes aim at."""
        moving = torch.zeros(len(old), self._bank.shape[0], device=old.device)
        for (start, stop), tile in self._bank:
            rows = preconditioned.gradient[:, start:stop].reshape(len(old), -1)
            moving.addmm_(rows, tile.reshape(len(tile), -1).T)
        moving *= (self._how.coding_share / preconditioned.weight)[:, None]
        return old.double() @ self._gram.to(old.device) + moving.double()

    def _sample_row_projector(self, positions: list[int], fit: AdapterFit) -> None:
        """Add H^T (H H^T)^-1 H of every so many experts to the sum of projectors."""
        for k, position in enumerate(positions):
            if position % self._stride == 0:
                hidden = fit.hidden[k : k + 1]
                columns = ridge_solve(fit.hidden_gram[k : k + 1], hidden.mT, self._how.ridge)
                self.moments.row_projector.addmm_(columns.solution[0], hidden[0])
                self.moments.sampled += 1


def _adapter_moment(fit: AdapterFit) -> Tensor:
    flat = fit.adapters.reshape(-1, fit.adapters.shape[2])
    return flat.T @ flat
