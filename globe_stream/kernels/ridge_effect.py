"""What a ridge does to a symmetric system of equations; counts of NaN and infinities."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RidgeEffect:
    """A system G + rho I beside G alone.

    Condition numbers are largest over smallest eigenvalue, infinity for a singular G. `shrinkage`
    is the share of the degrees of freedom that the ridge takes, 1 - tr(G (G + rho I)^-1) / r: 0
    where it changes nothing, 1 where it decides all.
    Source: Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning" (2009), 3.4.1.
    """

    condition_before: float
    condition_after: float
    shrinkage: float


def ridge_effect(gram: Tensor, ridge: float) -> RidgeEffect:
    """The effect of rho = `ridge` times the mean diagonal on G (r, r), positive semidefinite.

    Takes the eigenvalues in float64 on the CPU: O(r^3) operations.
    """
    values = torch.linalg.eigvalsh(gram.detach().cpu().double()).clamp_min(0)
    after = values + ridge * values.mean()
    kept = torch.where(after > 0, values / after, 1.0)
    return RidgeEffect(_condition(values), _condition(after), float(1 - kept.mean()))


def nonfinite(values: Tensor) -> int:
    """How many of `values` are NaN or infinite; one sum where none is."""
    if bool(torch.isfinite(values.sum())):
        return 0
    return int((~torch.isfinite(values)).sum())


def _condition(values: Tensor) -> float:
    """Largest over smallest of ascending eigenvalues (r,)."""
    return float(values[-1] / values[0]) if float(values[0]) > 0 else torch.inf
