"""How the adapters' ridge systems behaved in a pass: fallbacks, conditions, share of the ridge."""

from dataclasses import dataclass

import torch
from pydantic import JsonValue

from globe_stream.factorization.adapters import AdapterFit
from globe_stream.io.records import Record, Scalars
from globe_stream.io.world import World
from globe_stream.kernels.ridge_effect import nonfinite, ridge_effect

SAMPLES, LEAST_STRIDE = 8, 16
"""Experts whose systems are looked at by their eigenvalues, evenly spaced, and how far apart at
least: at r = 1056 one takes as long as fitting an adapter."""
_LARGEST = ("worst", "before", "after")
"""What is the largest of all experts', not their sum."""


@dataclass(frozen=True)
class SolverHealth(Record):
    """The adapters' systems H H^T + rho I of one pass.

    `condition_max` is the largest estimate over all experts; `condition_before`,
    `condition_after` (largest) and `shrinkage` (mean) those of `ridge_effect` over a sample.
    `ridge_share` is sum rho ||A||^2 over sum (||W~ - A H||^2 + rho ||A||^2), the part of the
    minimized energy that the ridge takes.
    """

    cholesky_fallbacks: int
    ridge_raised: int
    condition_max: float
    nonfinite_adapters: int
    ridge_share: float
    condition_before: float
    condition_after: float
    shrinkage: float

    def metrics(self) -> dict[str, JsonValue]:
        """By their published names."""
        return {
            "health/cholesky_fallbacks": self.cholesky_fallbacks,
            "health/ridge_raised": self.ridge_raised,
            "health/condition_max": self.condition_max,
            "health/nonfinite_adapters": self.nonfinite_adapters,
            "regularization/lambda_a_share": self.ridge_share,
            "regularization/lambda_a_shrinkage": self.shrinkage,
            "regularization/lambda_a_condition_before": self.condition_before,
            "regularization/lambda_a_condition_after": self.condition_after,
        }


class SolverLog:
    """Gathers `SolverHealth` batch by batch, for `count` experts and a relative ridge."""

    def __init__(self, count: int, ridge: float) -> None:
        self._ridge = ridge
        self._stride = max(LEAST_STRIDE, -(-count // SAMPLES))
        self._counts = {"fallbacks": 0, "raised": 0, "nonfinite": 0, "sampled": 0}
        self._sums = dict.fromkeys(("worst", "penalty", "residual", "shrinkage"), 0.0)
        self._sums |= {"before": 0.0, "after": 0.0}

    def add(self, positions: list[int], fit: AdapterFit) -> None:
        """Take the fit of a batch of experts at `positions`."""
        counts, sums = self._counts, self._sums
        counts["fallbacks"] += fit.solve.fallbacks
        counts["raised"] += fit.solve.raised
        if not bool(torch.isfinite(fit.penalty).all()):
            counts["nonfinite"] += nonfinite(fit.adapters)
        sums["worst"] = max(sums["worst"], float(fit.solve.condition.max()))
        sums["penalty"] += float(fit.penalty.sum())
        sums["residual"] += float(fit.squared_error.clamp_min(0).sum())
        for k, position in enumerate(positions):
            if position % self._stride == 0:
                self._sample(fit.hidden_gram[k])

    def scalars(self) -> Scalars:
        """Everything gathered so far; the names are of this log alone."""
        return {f"solver/{name}": value for name, value in {**self._counts, **self._sums}.items()}

    def restore(self, scalars: Scalars) -> None:
        """Return to what `scalars` said."""
        self._counts = {name: int(scalars[f"solver/{name}"]) for name in self._counts}
        self._sums = {name: float(scalars[f"solver/{name}"]) for name in self._sums}

    def reduce(self, world: World) -> None:
        """Take in what the logs of all processes gathered, in the order of their ranks."""
        every = world.gather((self._counts, self._sums))
        for name in self._counts:
            self._counts[name] = sum(counts[name] for counts, _ in every)
        for name in self._sums:
            together = max if name in _LARGEST else sum
            self._sums[name] = together(sums[name] for _, sums in every)

    def result(self) -> SolverHealth:
        """The health so far."""
        counts, sums = self._counts, self._sums
        whole = sums["penalty"] + sums["residual"]
        return SolverHealth(
            cholesky_fallbacks=counts["fallbacks"],
            ridge_raised=counts["raised"],
            condition_max=sums["worst"],
            nonfinite_adapters=counts["nonfinite"],
            ridge_share=sums["penalty"] / whole if whole else 0.0,
            condition_before=sums["before"],
            condition_after=sums["after"],
            shrinkage=sums["shrinkage"] / max(1, counts["sampled"]),
        )

    def _sample(self, gram: torch.Tensor) -> None:
        effect, sums = ridge_effect(gram, self._ridge), self._sums
        sums["before"] = max(sums["before"], effect.condition_before)
        sums["after"] = max(sums["after"], effect.condition_after)
        sums["shrinkage"] += effect.shrinkage
        self._counts["sampled"] += 1
