"""Adapters and the error against float64 formulas and least squares."""

import numpy as np
import pytest
import torch

from globe_stream.factorization.activation import Activation
from globe_stream.factorization.adapters import fit_adapters, squared_error
from globe_stream.kernels.ridge import ridge_solve

B, P, R, D = 4, 9, 5, 30


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def stacked(weights, hidden, ridge):
    """argmin ||W - A H||^2 + ridge s ||A||^2, s the mean diagonal of H H^T, by lstsq."""
    share = np.sqrt(ridge * np.trace(hidden @ hidden.T) / len(hidden))
    design = np.vstack([hidden.T, share * np.eye(len(hidden))])
    sides = np.vstack([weights.T, np.zeros((len(hidden), len(weights)))])
    return np.linalg.lstsq(design, sides, rcond=None)[0].T


@pytest.mark.parametrize("name", ["none", "tanh", "silu"])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-2])
def test_adapters_and_error_match_lstsq(name, ridge):
    weights, mixtures = normal(B, P, D), normal(B, R, D, seed=1)
    activation = Activation(name, 0.6, 1.7)
    fit = fit_adapters(weights, mixtures, activation, ridge)
    for k in range(B):
        scaled = 1.7 * mixtures[k].numpy()
        bent = {"none": scaled, "tanh": np.tanh(scaled), "silu": scaled / (1 + np.exp(-scaled))}
        hidden = 0.4 * scaled + 0.6 * bent[name]
        np.testing.assert_allclose(fit.hidden[k].numpy(), hidden, atol=1e-12)
        adapter = stacked(weights[k].numpy(), hidden, ridge)
        np.testing.assert_allclose(fit.adapters[k].numpy(), adapter, atol=1e-9)
        left = np.linalg.norm(weights[k].numpy() - adapter @ hidden) ** 2
        assert float(fit.squared_error[k]) == pytest.approx(left, rel=1e-9)


def test_float32_adapters_are_close_to_float64():
    weights, mixtures = normal(B, P, D), normal(B, R, D, seed=1)
    exact = fit_adapters(weights, mixtures, Activation(), 1e-6)
    single = fit_adapters(weights.float(), mixtures.float(), Activation(), 1e-6)
    torch.testing.assert_close(single.adapters.double(), exact.adapters, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(single.squared_error, exact.squared_error, rtol=1e-5, atol=0)


@pytest.mark.parametrize("noise", [0.3, 1e-2, 1e-4, 0.0])
def test_squared_error_keeps_its_digits_when_the_fit_is_nearly_perfect(noise):
    adapters, hidden = normal(B, P, R, dtype=torch.float32), normal(B, R, D, seed=1).float()
    weights = adapters @ hidden + noise * normal(B, P, D, seed=2).float()
    projected = weights @ hidden.mT
    solve = ridge_solve(hidden @ hidden.mT, projected, 1e-7)
    penalty = solve.amount.double() * solve.solution.double().square().sum((1, 2))
    found = squared_error(weights, hidden, projected, solve.solution, penalty)
    exact = (weights.double() - solve.solution.double() @ hidden.double()).square().sum((1, 2))
    whole = weights.double().square().sum((1, 2))
    assert found.dtype == torch.float64
    assert bool(((found - exact).abs() <= 1e-3 * exact + 1e-12 * whole).all())


def test_the_expanded_formula_alone_would_lose_those_digits():
    """What the branch is for: without it the error of a good fit is rounding noise."""
    adapters, hidden = normal(B, P, R, dtype=torch.float32), normal(B, R, D, seed=1).float()
    weights = adapters @ hidden + 1e-4 * normal(B, P, D, seed=2).float()
    gram, projected = hidden @ hidden.mT, weights @ hidden.mT
    naive = (
        weights.square().sum((1, 2))
        - 2 * (adapters * projected).sum((1, 2))
        + ((adapters @ gram) * adapters).sum((1, 2))
    )
    exact = (weights.double() - adapters.double() @ hidden.double()).square().sum((1, 2))
    assert float(((naive - exact).abs() / exact).max()) > 1


def test_the_error_does_not_depend_on_the_batch_beyond_rounding():
    """One expert in the batch near zero error takes all of them to the direct formula."""
    weights, mixtures = normal(B, P, D).float(), normal(B, R, D, seed=1).float()
    weights[0] = normal(P, R, seed=3).float() @ mixtures[0]
    together = fit_adapters(weights, mixtures, Activation(), 1e-6).squared_error
    for k in range(1, B):
        alone = fit_adapters(weights[k : k + 1], mixtures[k : k + 1], Activation(), 1e-6)
        assert float(together[k]) == pytest.approx(float(alone.squared_error), rel=1e-5)


def test_adapters_absorb_the_scale_of_the_mixtures():
    weights, mixtures = normal(B, P, D), normal(B, R, D, seed=1)
    one = fit_adapters(weights, mixtures, Activation(), 1e-3)
    ten = fit_adapters(weights, 10 * mixtures, Activation(), 1e-3)
    torch.testing.assert_close(10 * ten.adapters, one.adapters)
    torch.testing.assert_close(ten.squared_error, one.squared_error)
