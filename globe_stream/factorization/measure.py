"""A pass that measures a state (bank, codes): refitted adapters and the error of every expert."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import JsonValue
from torch import Tensor

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.reader import Batch
from globe_stream.factorization.activation import Activation
from globe_stream.factorization.adapters import AdapterFit, fit_adapters, fitted_together
from globe_stream.factorization.compose import compose
from globe_stream.factorization.error_sums import ErrorSums, by_expert, by_layer
from globe_stream.factorization.normalization import Normalization
from globe_stream.factorization.solver_health import SolverHealth, SolverLog
from globe_stream.factorization.spot_check import check_products
from globe_stream.io.records import Record, Scalars
from globe_stream.io.world import World
from globe_stream.kernels.workspace import Workspace
from globe_stream.store import arrays
from globe_stream.store.arrays import Loader
from globe_stream.store.tiles import Tiles


@dataclass(frozen=True)
class ErrorSummary(Record):
    """Relative Frobenius errors of original weights, and the health of the adapters' solver.

    `by_layer` has one for each layer, by its number; `nonfinite` is the number of experts without
    a finite error.
    """

    relative_frobenius_error: float
    worst_expert: float
    best_expert: float
    by_layer: dict[str, float]
    nonfinite: int
    solver: SolverHealth

    def metrics(self) -> dict[str, JsonValue]:
        """By their published names."""
        return {
            "recon/relative_frobenius_error": self.relative_frobenius_error,
            "recon/worst_expert": self.worst_expert,
            "recon/best_expert": self.best_expert,
            "recon/by_layer": dict(self.by_layer),
            "health/nonfinite": self.nonfinite,
            **self.solver.metrics(),
        }


class ErrorLog:
    """Squared errors by expert, of the original weights, and the solver's health.

    `norms` (N,) are the weights' squared norms, `ridge` the relative ridge of the adapters.
    """

    def __init__(self, norms: Tensor, scale: float, ridge: float) -> None:
        self._norms = norms
        self._scale = scale
        self.squared_errors = torch.full((len(norms),), torch.nan, dtype=torch.float64)
        self._solver = SolverLog(len(norms), ridge)

    def add(self, positions: list[int], fit: AdapterFit) -> None:
        """Take the fit of a batch of normalized weights, those of the experts at `positions`."""
        self.squared_errors[positions] = fit.squared_error.clamp_min(0) * self._scale**2
        self._solver.add(positions, fit)

    def restore(self, squared_errors: Tensor, scalars: Scalars) -> None:
        """Return to an earlier state."""
        self.squared_errors = squared_errors
        self._solver.restore(scalars)

    def reduce(self, world: World, positions: Sequence[int]) -> None:
        """Take in the errors of all processes; those of the experts at `positions` are here."""
        world.fill_(self.squared_errors, positions)
        self._solver.reduce(world)

    def scalars(self) -> Scalars:
        """The solver's health so far."""
        return self._solver.scalars()

    @property
    def relative_error(self) -> float:
        """relF over the experts seen so far."""
        seen = ~self.squared_errors.isnan()
        return ErrorSums.of(self.squared_errors[seen], self._norms[seen]).relative_error

    def summary(self, experts: Sequence[ExpertMatrix]) -> ErrorSummary:
        """Errors overall, by layer and by expert, and the health counts, of all `experts`."""
        each = by_expert(self.squared_errors, self._norms)
        return ErrorSummary(
            relative_frobenius_error=self.relative_error,
            worst_expert=float(each.max()),
            best_expert=float(each.min()),
            by_layer=self._by_layer(experts),
            nonfinite=int((~torch.isfinite(each)).sum()),
            solver=self._solver.result(),
        )

    def _by_layer(self, experts: Sequence[ExpertMatrix]) -> dict[str, float]:
        layers = torch.tensor([expert.layer for expert in experts])
        sums = by_layer(self.squared_errors, self._norms, layers)
        return {str(layer): part.relative_error for layer, part in sums.items()}


class MeasureAccumulator:
    """Refits the adapters of every batch to a fixed bank and codes."""

    def __init__(
        self,
        bank: Tiles,
        codes: Tensor,
        activation: Activation,
        ridge: float,
        normalization: Normalization,
        norms: Tensor,
    ) -> None:
        self._bank = bank
        self._codes = codes
        self._activation = activation
        self._ridge = ridge
        self._normalization = normalization
        self._log = ErrorLog(norms, normalization.scale, ridge)
        self._workspace = Workspace(bank.device)

    @property
    def squared_errors(self) -> Tensor:
        """(N,) squared Frobenius errors of the original weights."""
        return self._log.squared_errors

    @property
    def relative_error(self) -> float:
        """relF over all experts."""
        return self._log.relative_error

    def summary(self, experts: Sequence[ExpertMatrix]) -> ErrorSummary:
        """See `ErrorLog.summary`."""
        return self._log.summary(experts)

    def update(self, batch: Batch) -> str:
        weights = self._normalization.apply_(batch.weights)
        mixtures = compose(self._codes[batch.positions].to(weights), self._bank, self._workspace)
        together = fitted_together(*mixtures.shape[1:])
        for start in range(0, len(mixtures), together):
            part = slice(start, start + together)
            fit = fit_adapters(weights[part], mixtures[part], self._activation, self._ridge)
            check_products(batch.positions[part], weights[part], fit)
            self._log.add(batch.positions[part], fit)
        return f"relF {self.relative_error:.4f}"

    def arrays(self) -> Mapping[str, arrays.Storable]:
        return {"squared_errors": self._log.squared_errors}

    def scalars(self) -> Scalars:
        return self._log.scalars()

    def reduce(self, world: World, positions: Sequence[int]) -> None:
        self._log.reduce(world, positions)

    def restore(self, load: Loader, scalars: Scalars) -> None:
        self._log.restore(torch.from_numpy(arrays.read(load("squared_errors"))), scalars)
