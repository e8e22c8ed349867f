"""The adapters of single experts, refitted one by one to a group's bank and codes.

One expert at a time: the arithmetic of an expert does not depend on which others are in the
batch, so an export has the same bytes whatever the memory budget and wherever it was resumed.
Source: docs/design.md, sections Adapters and Export formats.
"""

from typing import Protocol

import torch
from torch import Tensor

from globe_stream.factorization.adapters import AdapterFit, fit_adapters
from globe_stream.factorization.bank_cache import Bank
from globe_stream.factorization.compose import compose_sparse
from globe_stream.factorization.fitted_group import FittedGroup


class Approximation(Protocol):
    """Anything that replaces the experts of a group, given their weights."""

    def replace(self, position: int, weights: Tensor) -> Tensor:
        """The replacement (p, d) float32 of expert `position`, whose `weights` may be changed."""


class BankApproximation:
    """W_hat = scale A H + mean, with H = phi(gamma Z) and A refitted to the weights."""

    def __init__(self, fitted: FittedGroup, bank: Bank) -> None:
        self.fitted = fitted
        self._bank = bank
        self._mixture = torch.empty(1, *bank.shape[1:])

    def replace(self, position: int, weights: Tensor) -> Tensor:
        """scale A H + mean (p, d); `weights` (p, d) is overwritten."""
        fit = self.fit(position, weights)
        torch.mm(fit.adapters[0], fit.hidden[0], out=weights)
        return self.fitted.normalization.undo_(weights)

    def fit(self, position: int, weights: Tensor) -> AdapterFit:
        """Adapters and error of `weights` (p, d), which are normalized in place."""
        self.fitted.normalization.apply_(weights)
        compose_sparse(*self.fitted.codes.of(position), self._bank.atom, self._mixture[0])
        return fit_adapters(weights[None], self._mixture, self.fitted.activation, self.fitted.ridge)
