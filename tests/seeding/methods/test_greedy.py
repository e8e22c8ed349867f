"""Greedy and hybrid seeding against their algorithms on explicit vectors."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls as scipy_nnls
from support import seed_options

from globe_stream.seeding.methods import GramView
from globe_stream.seeding.methods.greedy import (
    Residual,
    _code,
    grow,
    residual_greedy,
    top_eigenvector,
)
from globe_stream.seeding.methods.hybrid import hybrid
from globe_stream.seeding.methods.kmeans import spherical_kmeans
from globe_stream.seeding.methods.pca import gram_pca


def proxies(size=40, dimension=25, decay=1.5, seed=0):
    rng = np.random.default_rng(seed)
    columns = np.logspace(0, -decay, dimension)[:, None] * rng.standard_normal((dimension, size))
    return columns / np.linalg.norm(columns, axis=0)


def view_of(columns):
    return GramView.dense(torch.from_numpy(columns.T @ columns))


def ridge_codes(atoms, columns, ridge):
    stacked = np.vstack([atoms, ridge**0.5 * np.eye(atoms.shape[1])])
    sides = np.vstack([columns, np.zeros((atoms.shape[1], columns.shape[1]))])
    return np.stack([scipy_nnls(stacked, x)[0] for x in sides.T], axis=1)


def explicit_greedy(columns, count, ridge):
    """Section E of the guidelines with exact SVDs: atoms and the error each one met."""
    atoms, errors = np.zeros((len(columns), 0)), []
    for _ in range(count):
        residual = columns
        if atoms.shape[1]:
            residual = columns - atoms @ ridge_codes(atoms, columns, ridge)
        errors.append((residual**2).sum())
        left, _, right = np.linalg.svd(residual, full_matrices=False)
        sign = 1 if (np.maximum(right[0], 0) ** 2).sum() >= 0.5 else -1
        atoms = np.column_stack([atoms, sign * left[:, 0]])
    return atoms, errors


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_matches_the_explicit_algorithm(ridge):
    columns = proxies()
    options = seed_options(greedy_ridge=ridge)
    empty = torch.zeros(40, 0, dtype=torch.float64)
    combination, found = grow(
        view_of(columns), empty, 8, options.config, options.generator(), coding_steps=5000
    )
    atoms, errors = explicit_greedy(columns, 8, ridge)
    np.testing.assert_allclose(found, errors, rtol=1e-6)
    cosines = (atoms * (columns @ combination.numpy())).sum(0)
    np.testing.assert_allclose(cosines, 1, atol=1e-4)
    quick = residual_greedy(view_of(columns), 8, options).stats["greedy/errors"]
    np.testing.assert_allclose(quick, errors, rtol=1e-3)


def test_error_falls_with_every_atom():
    errors = residual_greedy(view_of(proxies()), 15, seed_options()).stats["greedy/errors"]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]


def test_top_eigenvector_matches_numpy():
    columns = proxies()
    view = view_of(columns)
    empty = torch.zeros(40, 0, dtype=torch.float64)
    vector = top_eigenvector(Residual(view, empty, empty), 40, torch.Generator().manual_seed(0))
    values, vectors = np.linalg.eigh(columns.T @ columns)
    assert float((vector.T @ view.matmul(vector)).item()) == pytest.approx(values[-1])
    assert abs(float(vectors[:, -1] @ vector[:, 0].numpy())) == pytest.approx(1.0)


def test_residual_operator_matches_explicit_residuals():
    columns, rng = proxies(), np.random.default_rng(1)
    combination, codes = rng.standard_normal((40, 3)), rng.random((40, 3))
    residuals = columns - columns @ combination @ codes.T
    operator = Residual(view_of(columns), torch.from_numpy(combination), torch.from_numpy(codes))
    probe = rng.standard_normal((40, 2))
    np.testing.assert_allclose(
        operator.matmul(torch.from_numpy(probe)).numpy(), residuals.T @ (residuals @ probe)
    )


def columns_match(found, expected):
    return [bool(torch.allclose(found[:, j], expected[:, j])) for j in range(expected.shape[1])]


@pytest.mark.parametrize(("ratio", "from_pca"), [(0.5, 5), (0.2, 2), (1.0, 10), (0.0, 0)])
def test_hybrid_of_pca_and_kmeans(ratio, from_pca):
    view = view_of(proxies())
    options = seed_options(hybrid_ratio=ratio)
    found = hybrid(view, 10, options)
    assert found.stats == {"hybrid/pca": from_pca, "hybrid/others": 10 - from_pca}
    if from_pca:
        expected = gram_pca(view, from_pca, options).combination
        assert all(columns_match(found.combination[:, :from_pca], expected))
    if from_pca < 10:
        expected = spherical_kmeans(view, 10 - from_pca, options).combination
        assert all(columns_match(found.combination[:, from_pca:], expected))


def test_greedy_hybrid_replaces_the_trailing_components():
    columns = proxies()
    view, options = (
        view_of(columns),
        seed_options(hybrid_variant="greedy", pca_signs="flip"),
    )
    found = hybrid(view, 9, options).combination
    kept = gram_pca(view, 9, options).combination[:, :4]
    assert all(columns_match(found[:, :4], kept))
    atoms = columns @ kept.numpy()
    residual = columns - atoms @ ridge_codes(atoms, columns, 0.0)
    best = np.linalg.svd(residual)[0][:, 0]
    assert abs(best @ (columns @ found[:, 4].numpy())) == pytest.approx(1.0, abs=1e-6)


def test_greedy_hybrid_without_pca_is_greedy():
    view, options = (
        view_of(proxies()),
        seed_options(hybrid_variant="greedy", hybrid_ratio=0.0),
    )
    expected = residual_greedy(view, 6, options).combination
    torch.testing.assert_close(hybrid(view, 6, options).combination, expected)


@pytest.mark.parametrize("penalty", [0.0, 0.1, 0.3])
def test_a_lasso_codes_as_scikit_learn_does(penalty):
    """Non-negative lasso: 1/2 ||x - B a||^2 + penalty sum a, its own objective being per row."""
    from sklearn.linear_model import Lasso, LinearRegression

    generator = torch.Generator().manual_seed(1)
    data = torch.randn(30, 12, generator=generator, dtype=torch.float64)
    data /= data.norm(dim=1, keepdim=True)
    gram = data @ data.T
    combination = torch.zeros(30, 4, dtype=torch.float64)
    combination[:4] = torch.eye(4, dtype=torch.float64)
    config = seed_options(greedy_lasso=penalty).config
    codes, error = _code(combination, gram @ combination, torch.zeros(30, 4).double(), config, 500)
    atoms = data[:4].T.numpy()
    for own, target in zip(codes, data, strict=True):
        if penalty:
            oracle = Lasso(penalty / 12, positive=True, fit_intercept=False, tol=1e-12)
        else:
            oracle = LinearRegression(positive=True, fit_intercept=False)
        expected = oracle.fit(atoms, target.numpy()).coef_
        assert own.numpy() == pytest.approx(expected, abs=1e-5)
    left = ((data - codes @ data[:4]) ** 2).sum()
    assert error == pytest.approx(float(left), rel=1e-9)
