"""NNLS against scipy's active-set solver, and exact enumeration on the simplex."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls as scipy_nnls

from globe_stream.errors import GlobeError
from globe_stream.kernels.active_set import descend_exactly
from globe_stream.kernels.nnls import nnls
from globe_stream.kernels.pivoting import Quadratic, pivot


def problem(m, k, b, *, decay=0.0, seed=0, duplicates=False):
    """Unit-norm atoms (k, m) with singular values falling over `decay` decades, points (k, b)."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((k, m))
    if decay:
        turn = np.linalg.qr(rng.standard_normal((m, m)))[0]
        atoms = atoms @ np.diag(np.logspace(0, -decay, m)) @ turn
    if duplicates:
        atoms[:, m // 2 :] = atoms[:, : m - m // 2]
    atoms /= np.linalg.norm(atoms, axis=0)
    codes = rng.random((m, b)) * (rng.random((m, b)) < 0.2)
    points = rng.standard_normal((k, b)) / np.sqrt(k) + 0.5 * atoms @ codes
    return torch.from_numpy(atoms), torch.from_numpy(points)


def losses(atoms, points, codes):
    return (points - atoms @ codes.double().T).square().sum(0)


def scipy_losses(atoms, points):
    columns = points.T.numpy()
    residuals = [scipy_nnls(atoms.numpy(), x, maxiter=9000)[1] for x in columns]
    return torch.tensor(residuals, dtype=torch.float64).square()


CASES = {
    "easy": {"m": 12, "k": 40, "b": 30},
    "tall": {"m": 60, "k": 500, "b": 40},
    "wide": {"m": 60, "k": 30, "b": 40},
    "condition1e6": {"m": 40, "k": 80, "b": 40, "decay": 3.0},
    "condition1e12": {"m": 40, "k": 80, "b": 40, "decay": 6.0},
    "duplicates": {"m": 30, "k": 80, "b": 40, "duplicates": True},
    "one_atom": {"m": 1, "k": 5, "b": 8},
}


# In float32 a Gram matrix of condition 1e12 is another problem: it is tried in float64 only.
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float64) for case in CASES]
    + [(case, torch.float32) for case in CASES if case != "condition1e12"],
)
def test_loss_matches_scipy(case, dtype):
    atoms, points = problem(**CASES[case])
    result = nnls((atoms.T @ atoms).to(dtype), (points.T @ atoms).to(dtype))
    assert result.codes.dtype == dtype
    assert bool((result.codes >= 0).all())
    excess = losses(atoms, points, result.codes) - scipy_losses(atoms, points)
    limit = 1e-9 if dtype == torch.float64 else 1e-6
    assert float((excess / points.square().sum(0)).abs().max()) < limit


def test_codes_match_scipy_where_they_are_unique():
    atoms, points = problem(60, 200, 25)
    expected = np.stack([scipy_nnls(atoms.numpy(), x)[0] for x in points.T.numpy()])
    result = nnls(atoms.T @ atoms, points.T @ atoms)
    np.testing.assert_allclose(result.codes.numpy(), expected, atol=1e-10)
    assert float(result.kkt_residual.max()) < 1e-9


def test_gradient_alone_reaches_the_same_loss():
    atoms, points = problem(30, 100, 20)
    result = nnls(atoms.T @ atoms, points.T @ atoms, polish=False, max_iterations=3000)
    expected = scipy_losses(atoms, points)
    torch.testing.assert_close(losses(atoms, points, result.codes), expected, rtol=1e-9, atol=0)


def test_mask_restricts_the_support():
    atoms, points = problem(20, 50, 25)
    mask = torch.rand(25, 20, generator=torch.Generator().manual_seed(5)) < 0.4
    result = nnls(atoms.T @ atoms, points.T @ atoms, mask=mask)
    assert bool((result.codes[~mask] == 0).all())
    for i in range(25):
        kept = mask[i].nonzero()[:, 0]
        expected = scipy_nnls(atoms[:, kept].numpy(), points[:, i].numpy())[0]
        np.testing.assert_allclose(result.codes[i, kept].numpy(), expected, atol=1e-10)


def simplex_by_enumeration(gram, linear):
    """Best code over all supports: equality-constrained minimisers that are non-negative."""
    m, best, code = len(linear), np.inf, None
    for size in range(1, m + 1):
        for support in combinations(range(m), size):
            s = list(support)
            kkt = np.block([[gram[np.ix_(s, s)], np.ones((size, 1))], [np.ones((1, size)), 0]])
            values = np.linalg.solve(kkt, np.append(linear[s], 1.0))[:size]
            value = 0.5 * values @ gram[np.ix_(s, s)] @ values - values @ linear[s]
            if values.min() >= 0 and value < best:
                best, code = value, np.zeros(m)
                code[s] = values
    return code


@pytest.mark.parametrize("polish", [True, False])
def test_simplex_matches_enumeration(polish):
    atoms, points = problem(6, 9, 15, seed=2)
    gram, linear = atoms.T @ atoms, points.T @ atoms * 3
    result = nnls(gram, linear, simplex=True, polish=polish, max_iterations=4000)
    expected = np.stack([simplex_by_enumeration(gram.numpy(), x) for x in linear.numpy()])
    np.testing.assert_allclose(result.codes.numpy(), expected, atol=1e-8)


def test_simplex_with_mask_obeys_the_optimality_conditions():
    atoms, points = problem(50, 70, 40, seed=4)
    gram, linear = atoms.T @ atoms, points.T @ atoms * 4
    mask = torch.rand(40, 50, generator=torch.Generator().manual_seed(1)) < 0.5
    codes = nnls(gram, linear, simplex=True, mask=mask).codes
    torch.testing.assert_close(codes.sum(1), torch.ones(40, dtype=torch.float64))
    assert bool((codes[~mask] == 0).all())
    gradient = codes @ gram - linear
    level = (gradient * codes).sum(1, keepdim=True)
    slack = gradient - level
    assert float(slack[mask].min()) > -1e-9
    assert float((slack * codes).abs().max()) < 1e-9


def test_start_at_the_solution_stays_there():
    atoms, points = problem(30, 100, 10)
    gram, linear = atoms.T @ atoms, points.T @ atoms
    solved = nnls(gram, linear).codes
    again = nnls(gram, linear, start=solved)
    torch.testing.assert_close(again.codes, solved, rtol=0, atol=1e-12)
    assert again.iterations <= 10


def test_loss_never_rises_over_more_iterations():
    atoms, points = problem(40, 80, 30, decay=3.0)
    gram, linear = atoms.T @ atoms, points.T @ atoms
    runs = [nnls(gram, linear, polish=False, max_iterations=n).codes for n in (0, 20, 80, 320)]
    sums = [float(losses(atoms, points, codes).sum()) for codes in runs]
    assert sums == sorted(sums, reverse=True)
    assert sums[-1] < 0.99 * sums[1]


def test_active_set_solves_what_pivoting_leaves():
    """An ill-conditioned problem on which block pivoting cycles for some rows."""
    atoms, points = problem(40, 80, 40, decay=6.0)
    quadratic = Quadratic(atoms.T @ atoms, points.T @ atoms, None, False, 2e-16)
    start = torch.full((40, 40), 0.01, dtype=torch.float64)
    _, settled = pivot(quadratic, start, 1e-9)
    assert not bool(settled.all())
    codes, solved = descend_exactly(quadratic, start, 1e-9)
    assert bool(solved.all())
    excess = losses(atoms, points, codes) - scipy_losses(atoms, points)
    assert float(excess.abs().max()) < 1e-9


def test_dead_atoms_and_zero_targets_get_zero_codes():
    atoms, points = problem(10, 30, 6)
    atoms[:, 3] = 0
    points[:, 2] = 0
    codes = nnls(atoms.T @ atoms, points.T @ atoms).codes
    assert bool((codes[:, 3] == 0).all())
    assert bool((codes[2] == 0).all())


@pytest.mark.parametrize("simplex", [False, True])
def test_is_deterministic(simplex):
    atoms, points = problem(40, 90, 50)
    runs = [nnls(atoms.T @ atoms, points.T @ atoms, simplex=simplex).codes for _ in range(2)]
    assert torch.equal(*runs)


def test_nan_is_refused():
    with pytest.raises(GlobeError, match="NaN"):
        nnls(torch.eye(2), torch.tensor([[1.0, torch.nan]]))


def test_empty_mask_row_on_the_simplex_is_refused():
    with pytest.raises(GlobeError, match="allows no atom"):
        nnls(torch.eye(2), torch.ones(1, 2), mask=torch.zeros(1, 2, dtype=bool), simplex=True)


@pytest.mark.parametrize("polish", [True, False])
def test_rows_solved_in_batches_are_those_solved_together(monkeypatch, polish):
    atoms, points = problem(30, 40, 50, decay=1.0)
    mask = torch.from_numpy(np.random.default_rng(1).random((50, 30)) < 0.7)
    settings = {"start": torch.full((50, 30), 0.1), "mask": mask, "polish": polish}
    together = nnls(atoms.T @ atoms, points.T @ atoms, tolerance=1e-9, **settings)
    monkeypatch.setattr("globe_stream.kernels.nnls.BATCH_ROWS", 7)
    batches = nnls(atoms.T @ atoms, points.T @ atoms, tolerance=1e-9, **settings)
    torch.testing.assert_close(batches.codes, together.codes, atol=1e-7, rtol=0)
    assert bool((batches.kkt_residual <= torch.clamp(together.kkt_residual, min=1e-9) * 1.01).all())
