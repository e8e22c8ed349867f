"""The adapters' systems of a pass, against dense float64."""

import math

import numpy as np
import pytest
import torch

from globe_stream.factorization.activation import Activation
from globe_stream.factorization.adapters import fit_adapters
from globe_stream.factorization.solver_health import LEAST_STRIDE, SAMPLES, SolverLog

N, P, D, R, RIDGE = 21, 6, 12, 4, 0.05


def problem():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(N, P, D, generator=generator)
    return weights, torch.randn(N, R, D, generator=generator)


def gathered(batch=5, skip=0, log=None):
    weights, mixtures = problem()
    log = log or SolverLog(N, RIDGE)
    for first in list(range(0, N, batch))[skip:]:
        positions = list(range(first, min(first + batch, N)))
        fit = fit_adapters(weights[positions], mixtures[positions], Activation(), RIDGE)
        log.add(positions, fit)
    return log


def test_the_share_of_the_ridge_is_that_of_the_minimized_energy():
    penalty = residual = 0.0
    for weight, mixture in zip(*(part.double().numpy() for part in problem()), strict=True):
        gram = mixture @ mixture.T
        rho = RIDGE * np.trace(gram) / R
        adapter = weight @ mixture.T @ np.linalg.inv(gram + rho * np.eye(R))
        penalty += rho * (adapter**2).sum()
        residual += ((weight - adapter @ mixture) ** 2).sum()
    found = gathered().result()
    assert found.ridge_share == pytest.approx(penalty / (penalty + residual), rel=1e-5)
    assert 0.001 < found.ridge_share < 0.5


def test_conditions_and_shrinkage_are_those_of_an_even_sample():
    _, mixtures = problem()
    step = max(LEAST_STRIDE, math.ceil(N / SAMPLES))
    before, after, shrunk = [], [], []
    for mixture in mixtures[::step].double().numpy():
        gram = mixture @ mixture.T
        added = gram + RIDGE * np.trace(gram) / R * np.eye(R)
        before.append(np.linalg.cond(gram))
        after.append(np.linalg.cond(added))
        shrunk.append(1 - np.trace(gram @ np.linalg.inv(added)) / R)
    found = gathered().result()
    assert found.condition_before == pytest.approx(max(before), rel=1e-4)
    assert found.condition_after == pytest.approx(max(after), rel=1e-4)
    assert found.shrinkage == pytest.approx(np.mean(shrunk), rel=1e-4)
    assert found.condition_after < found.condition_before


def test_a_restored_log_continues_to_the_same_numbers():
    whole = gathered()
    weights, mixtures = problem()
    first = SolverLog(N, RIDGE)
    fit = fit_adapters(weights[:5], mixtures[:5], Activation(), RIDGE)
    first.add(list(range(5)), fit)
    second = SolverLog(N, RIDGE)
    second.restore(first.scalars())
    gathered(skip=1, log=second)
    assert second.scalars() == whole.scalars()
    assert second.result() == whole.result()
