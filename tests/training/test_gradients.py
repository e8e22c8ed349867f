"""Directions: gradients by automatic differentiation, targets by their definitions."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch

from globe_stream.factorization.activation import Activation
from globe_stream.factorization.adapters import fit_adapters
from globe_stream.training import gradients as directions

B, P, R, D = 3, 7, 4, 11
CURVES = [("none", 0.0), ("tanh", 1.0), ("tanh", 0.35), ("silu", 1.0), ("silu", 0.35)]


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def problem(name="none", lam=0.0, gamma=1.3, ridge=0.0):
    weights, mixtures = normal(B, P, D, seed=0), normal(B, R, D, seed=1)
    activation = Activation(name, lam, gamma)
    return weights, mixtures, activation, fit_adapters(weights, mixtures, activation, ridge)


def found_by(direction, weights, mixtures, *rest):
    """What `direction` finds, which overwrites what it is given."""
    return direction(weights.clone(), mixtures.clone(), *rest)


def phi(mixtures, name, lam, gamma):
    """The blended activation from its definition."""
    scaled = gamma * mixtures
    bent = {"none": scaled, "tanh": torch.tanh(scaled), "silu": scaled * torch.sigmoid(scaled)}
    return (1 - lam) * scaled + lam * bent[name]


@pytest.mark.parametrize(("name", "lam"), CURVES)
def test_surrogate_gradient_is_minus_half_the_gradient(name, lam):
    weights, mixtures, activation, fit = problem(name, lam, ridge=0.05)
    point = mixtures.clone().requires_grad_()
    loss = (weights - fit.adapters @ phi(point, name, lam, 1.3)).square().sum()
    (gradient,) = torch.autograd.grad(loss, point)
    eye = torch.eye(R, dtype=torch.float64)
    found = found_by(directions.surrogate, weights, mixtures, fit, activation, 0.25, eye)
    torch.testing.assert_close(found.gradient, -gradient / 2)


@pytest.mark.parametrize(("name", "lam"), CURVES)
def test_surrogate_gradient_is_that_of_the_loss_with_adapters_refitted(name, lam):
    """Variable projection: the adapters' own change does not count to first order."""
    weights, mixtures, activation, fit = problem(name, lam)
    point = mixtures.clone().requires_grad_()
    hidden = phi(point, name, lam, 1.3)
    refitted = torch.linalg.lstsq(hidden.mT, weights.mT).solution.mT
    loss = (weights - refitted @ hidden).square().sum()
    (gradient,) = torch.autograd.grad(loss, point)
    eye = torch.eye(R, dtype=torch.float64)
    found = found_by(directions.surrogate, weights, mixtures, fit, activation, 0.25, eye)
    torch.testing.assert_close(found.gradient, -gradient / 2)


def test_surrogate_weight_is_four_c_times_the_mean_curvature():
    weights, mixtures, activation, fit = problem(gamma=1.3)
    root = normal(R, R, seed=5)
    adapter_moment = root @ root.T + torch.eye(R, dtype=torch.float64)
    probes = torch.linalg.cholesky(torch.linalg.inv(adapter_moment))
    found = found_by(directions.surrogate, weights, mixtures, fit, activation, 0.7, probes)
    curvature = 1.3**2 * fit.adapters.mT @ fit.adapters
    for k in range(B):
        values = scipy.linalg.eigh(curvature[k].numpy(), adapter_moment.numpy(), eigvals_only=True)
        assert float(found.weight[k]) == pytest.approx(4 * 0.7 * values.mean())


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_pinv_moves_to_the_ridge_solution_when_linear(ridge):
    weights, mixtures, activation, fit = problem()
    found = found_by(directions.pseudo_inverse, weights, mixtures, fit, activation, ridge)
    for k in range(B):
        adapter = fit.adapters[k].numpy()
        system = adapter.T @ adapter
        system += ridge * np.trace(system) / R * np.eye(R)
        residual = (weights[k] - fit.adapters[k] @ fit.hidden[k]).numpy()
        move = np.linalg.solve(system, adapter.T @ residual) / 1.3
        np.testing.assert_allclose(found.gradient[k].numpy(), move, atol=1e-9)
    assert found.weight.tolist() == [1.0] * B


def test_pinv_without_ridge_lands_on_the_least_squares_target():
    weights, mixtures, activation, fit = problem()
    found = found_by(directions.pseudo_inverse, weights, mixtures, fit, activation, 0.0)
    target = torch.linalg.pinv(fit.adapters) @ weights / 1.3
    torch.testing.assert_close(mixtures + found.gradient, target)


@pytest.mark.parametrize("name", ["tanh", "silu"])
def test_pinv_divides_by_the_bounded_slope_when_curved(name):
    weights, mixtures, activation, fit = problem(name, 1.0)
    point = mixtures.clone().requires_grad_()
    (slope,) = torch.autograd.grad(phi(point, name, 1.0, 1.3).sum(), point)
    move = torch.linalg.pinv(fit.adapters) @ (weights - fit.adapters @ fit.hidden)
    found = found_by(directions.pseudo_inverse, weights, mixtures, fit, activation, 0.0)
    torch.testing.assert_close(found.gradient, move / (slope / 1.3).clamp_min(0.1) / 1.3)


@pytest.mark.parametrize("name", ["none", "tanh"])
def test_the_warmup_target_is_near_the_nearest_rotated_expert(name):
    """As near as singular values between 0.6 and 1.2 in place of one allow."""
    weights, mixtures, activation, fit = problem(name, 0.5)
    found = found_by(directions.orthonormal, weights, mixtures, fit, activation)
    for k in range(B):
        unitary, _ = scipy.linalg.polar((mixtures[k] @ weights[k].T).numpy(), side="left")
        turned = (mixtures[k] + found.gradient[k]).numpy() * float(weights[k].norm())
        rotation = np.linalg.lstsq(weights[k].numpy().T, turned.T, rcond=None)[0].T
        left, values, right = np.linalg.svd(rotation, full_matrices=False)
        np.testing.assert_allclose(left @ right, unitary, atol=1e-8)
        assert values.min() > 0.6
        assert values.max() < 1.2
    assert found.weight.tolist() == [1.0] * B


def test_blended_targets_go_from_one_to_the_other():
    weights, mixtures, activation, fit = problem()
    start = found_by(directions.orthonormal, weights, mixtures, fit, activation)
    eye = torch.eye(R, dtype=torch.float64)
    aware = found_by(directions.surrogate, weights, mixtures, fit, activation, 0.25, eye)
    target = mixtures + aware.gradient / aware.weight[:, None, None]
    for beta in (0.0, 0.25, 1.0):
        kept = replace(aware, gradient=aware.gradient.clone())
        found = directions.blended(start, kept, beta)
        expected = (1 - beta) * (mixtures + start.gradient) + beta * target
        torch.testing.assert_close(
            mixtures + found.gradient / found.weight[:, None, None], expected
        )


def test_directions_are_deterministic():
    def all_of_them():
        weights, mixtures, activation, fit = problem("tanh", 0.5)
        eye = torch.eye(R, dtype=torch.float64)
        first = found_by(directions.surrogate, weights, mixtures, fit, activation, 0.25, eye)
        second = found_by(directions.pseudo_inverse, weights, mixtures, fit, activation, 1e-3)
        third = found_by(directions.orthonormal, weights, mixtures, fit, activation)
        return [x for d in (first, second, third) for x in (d.gradient, d.weight)]

    assert all(torch.equal(a, b) for a, b in zip(all_of_them(), all_of_them(), strict=True))


def test_targets_of_the_warm_start_are_rotated_to_its_mean_whatever_the_mixtures_are():
    weights, mixtures, activation, fit = problem()
    mean = normal(R, D, seed=5)
    found = found_by(directions.orthonormal, weights, mixtures, fit, activation, "float32", mean)
    for k in range(B):
        rotation, _ = scipy.linalg.polar((mean @ weights[k].T).numpy(), side="left")
        target = rotation @ weights[k].numpy() / weights[k].norm().item()
        reached = (mixtures + found.gradient)[k].numpy()
        assert np.linalg.norm(reached - target) < 0.35 * np.linalg.norm(target)
        cosine = (reached * target).sum() / np.linalg.norm(reached) / np.linalg.norm(target)
        assert cosine > 0.97
    again = found_by(
        directions.orthonormal, weights, 2 * mixtures, fit, activation, "float32", mean
    )
    torch.testing.assert_close(2 * mixtures + again.gradient, mixtures + found.gradient)
    own = found_by(directions.orthonormal, weights, mixtures, fit, activation)
    assert not torch.allclose(own.gradient, found.gradient)
