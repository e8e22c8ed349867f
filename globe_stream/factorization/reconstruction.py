"""The adapters of single experts, refitted one by one to a group's bank and codes.

One expert at a time: the arithmetic of an expert does not depend on which others are in the
batch, so an export has the same bytes whatever the memory budget and wherever it was resumed.
Source: docs/design.md, sections Adapters and Export formats.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from globe_stream.factorization.adapters import AdapterFit, fit_adapters
from globe_stream.factorization.bank_cache import Bank, BankCache
from globe_stream.factorization.compose import compose_sparse
from globe_stream.factorization.fitted_group import FittedGroup
from globe_stream.factorization.input_metric import LayerMetrics


class Approximation(Protocol):
    """Anything that replaces the experts of a group, given their weights."""

    def replace(self, position: int, weights: Tensor) -> Tensor:
        """The replacement (p, d) float32 of expert `position`, whose `weights` may be changed."""


@dataclass(frozen=True)
class GroupFits:
    """Makes the approximation of a group: from its bank, for the inputs of layers if `metrics`."""

    banks: BankCache
    metrics: LayerMetrics | None = None

    def of(self, fitted: FittedGroup) -> "BankApproximation":
        """That of `fitted`."""
        return BankApproximation(fitted, self.banks.bank(fitted), self.metrics)


class BankApproximation:
    """W_hat = scale A H + mean, with H = phi(gamma Z) and A refitted to the weights.

    With `metrics` adapters are refitted for the inputs of their layer.
    """

    def __init__(
        self, fitted: FittedGroup, bank: Bank, metrics: LayerMetrics | None = None
    ) -> None:
        self.fitted = fitted
        self._bank, self._metrics = bank, metrics
        self._mixture = torch.empty(1, *bank.shape[1:])

    def replace(self, position: int, weights: Tensor) -> Tensor:
        """scale A H + mean (p, d); `weights` (p, d) is overwritten."""
        fit = self.fit(position, weights)
        torch.mm(fit.adapters[0].to(weights), fit.hidden[0], out=weights)
        return self.fitted.normalization.undo_(weights)

    def fit(self, position: int, weights: Tensor) -> AdapterFit:
        """Adapters and error of `weights` (p, d), which are normalized in place."""
        self.fitted.normalization.apply_(weights)
        compose_sparse(*self.fitted.codes.of(position), self._bank.atom, self._mixture[0])
        layer = self.fitted.group.experts[position].layer
        metric = None if self._metrics is None else self._metrics.of(layer)
        phi, ridge = self.fitted.activation, self.fitted.ridge
        return fit_adapters(weights[None], self._mixture, phi, ridge, metric)
