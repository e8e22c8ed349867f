"""Ridge solves against numpy's least squares on the stacked system."""

import numpy as np
import pytest
import torch
from support import slow

from globe_stream.errors import GlobeError
from globe_stream.kernels.ridge import ridge_solve


def systems(dtype=torch.float64, b=4, p=7, r=5, d=30):
    generator = torch.Generator().manual_seed(11)
    targets = torch.randn(b, p, d, generator=generator, dtype=torch.float64)
    factors = torch.randn(b, r, d, generator=generator, dtype=torch.float64)
    return targets.to(dtype), factors.to(dtype)


def normal_equations(targets, factors):
    return factors @ factors.transpose(1, 2), targets @ factors.transpose(1, 2)


def stacked_lstsq(target, factor, ridge):
    """argmin ||W - A H||^2 + ridge mean(diag H H^T) ||A||^2, as one least-squares problem."""
    weight = np.sqrt(ridge * np.mean(np.sum(factor**2, axis=1)))
    design = np.vstack([factor.T, weight * np.eye(len(factor))])
    sides = np.vstack([target.T, np.zeros((len(factor), len(target)))])
    return np.linalg.lstsq(design, sides, rcond=None)[0].T


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1])
def test_matches_lstsq(ridge):
    targets, factors = systems()
    result = ridge_solve(*normal_equations(targets, factors), ridge)
    for i in range(len(targets)):
        expected = stacked_lstsq(targets[i].numpy(), factors[i].numpy(), ridge)
        np.testing.assert_allclose(result.solution[i].numpy(), expected, atol=1e-10)
    assert (result.raised, result.fallbacks) == (0, 0)


def test_float32():
    targets, factors = systems(torch.float32)
    result = ridge_solve(*normal_equations(targets, factors), 1e-4)
    assert result.solution.dtype == torch.float32
    expected = stacked_lstsq(targets[0].double().numpy(), factors[0].double().numpy(), 1e-4)
    np.testing.assert_allclose(result.solution[0].numpy(), expected, atol=1e-5)


def test_scaling_the_factor_scales_the_solution_back():
    targets, factors = systems()
    one = ridge_solve(*normal_equations(targets, factors), 0.05).solution
    ten = ridge_solve(*normal_equations(targets, 10 * factors), 0.05).solution
    torch.testing.assert_close(10 * ten, one)


def test_singular_matrices_are_ridged_and_counted():
    targets, factors = systems()
    factors[1, 4] = factors[1, 0]
    gram, rhs = normal_equations(targets, factors)
    gram[1] -= 1e-13 * torch.eye(5, dtype=torch.float64)  # rounding made it indefinite
    result = ridge_solve(gram, rhs, 0.0)
    assert result.raised >= 1
    assert result.fallbacks == 0
    fitted = result.solution[1] @ factors[1]
    expected = stacked_lstsq(targets[1].numpy(), factors[1].numpy(), 0.0) @ factors[1].numpy()
    np.testing.assert_allclose(fitted.numpy(), expected, atol=1e-6)
    untouched = ridge_solve(gram[[0, 2, 3]], rhs[[0, 2, 3]], 0.0).solution
    torch.testing.assert_close(result.solution[[0, 2, 3]], untouched)


def test_indefinite_matrices_are_solved_by_lu_and_counted():
    targets, factors = systems()
    gram, rhs = normal_equations(targets, factors)
    gram[2] = torch.diag(torch.tensor([3.0, 2.0, 1.0, -1.0, 2.0], dtype=torch.float64))
    result = ridge_solve(gram, rhs, 0.0)
    assert (result.raised, result.fallbacks) == (4, 1)
    torch.testing.assert_close(result.solution[2] @ gram[2], rhs[2])
    assert result.condition[2] == torch.inf
    assert bool(torch.isfinite(result.condition[[0, 1, 3]]).all())


def test_zero_matrices_give_zero_by_pseudo_inverse():
    gram, rhs = torch.zeros(2, 3, 3), torch.zeros(2, 4, 3)
    gram[0] = torch.eye(3)
    rhs[0] = 1.0
    result = ridge_solve(gram, rhs, 0.0)
    assert result.fallbacks == 1
    assert torch.equal(result.solution[0], rhs[0])
    assert torch.equal(result.solution[1], rhs[1])


def test_condition_estimate_orders_and_bounds():
    gram = torch.diag_embed(torch.tensor([[1.0, 1.0, 1.0], [1e4, 1.0, 1.0]]))
    condition = ridge_solve(gram, torch.ones(2, 1, 3), 0.0).condition
    torch.testing.assert_close(condition, torch.tensor([1.0, 1e4]))


def test_is_deterministic_and_leaves_input_alone():
    targets, factors = systems(torch.float32)
    gram, rhs = normal_equations(targets, factors)
    before = gram.clone()
    assert torch.equal(ridge_solve(gram, rhs, 1e-3).solution, ridge_solve(gram, rhs, 1e-3).solution)
    assert torch.equal(gram, before)


def test_bad_input_is_refused():
    with pytest.raises(GlobeError, match="NaN"):
        ridge_solve(torch.full((1, 2, 2), torch.nan), torch.ones(1, 1, 2), 0.1)
    with pytest.raises(GlobeError, match="negative"):
        ridge_solve(torch.eye(2)[None], torch.ones(1, 1, 2), -0.1)


@pytest.mark.parametrize("r", [256, slow(300)])
def test_large_systems_are_solved_block_by_block(r):
    targets, factors = systems(b=2, p=9, r=r, d=2 * r)
    gram, rhs = normal_equations(targets, factors)
    result = ridge_solve(gram, rhs, 1e-3)
    assert result.solution.is_contiguous()
    for i in range(2):
        expected = stacked_lstsq(targets[i].numpy(), factors[i].numpy(), 1e-3)
        np.testing.assert_allclose(result.solution[i].numpy(), expected, atol=1e-10)
    again = ridge_solve(gram, rhs, 1e-3)
    assert torch.equal(result.solution, again.solution)
    one = ridge_solve(gram[1:], rhs[1:], 1e-3)
    torch.testing.assert_close(one.solution, result.solution[1:])
