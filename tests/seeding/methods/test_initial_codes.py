"""Codes in Gram space against explicit vectors."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls as scipy_nnls

from globe_stream.seeding.methods import GramView, codes_from_gram

RNG = np.random.default_rng(0)
COLUMNS = RNG.standard_normal((20, 30))
COLUMNS /= np.linalg.norm(COLUMNS, axis=0)
COMBINATION = RNG.standard_normal((30, 6))
ATOMS = COLUMNS @ COMBINATION
COMBINATION /= np.linalg.norm(ATOMS, axis=0)
ATOMS = COLUMNS @ COMBINATION


def fit(kind):
    view = GramView.dense(torch.from_numpy(COLUMNS.T @ COLUMNS))
    return codes_from_gram(view, torch.from_numpy(COMBINATION), kind=kind)


def test_nnls_codes_match_scipy():
    expected = np.stack([scipy_nnls(ATOMS, x)[0] for x in COLUMNS.T])
    np.testing.assert_allclose(fit("nnls").codes.numpy(), expected, atol=1e-10)


def test_clamped_codes_match_lstsq():
    expected = np.linalg.lstsq(ATOMS, COLUMNS, rcond=None)[0].T
    np.testing.assert_allclose(fit("ls_clamp").codes.numpy(), np.maximum(expected, 0), atol=1e-10)


def test_simplex_codes_sum_to_one_and_are_optimal():
    fitted = fit("simplex")
    codes = fitted.codes.numpy()
    np.testing.assert_allclose(codes.sum(1), 1)
    gradient = codes @ (ATOMS.T @ ATOMS) - COLUMNS.T @ ATOMS
    level = (gradient * codes).sum(1, keepdims=True)
    assert (gradient - level).min() > -1e-9


@pytest.mark.parametrize("kind", ["nnls", "simplex", "ls_clamp"])
def test_quality_figures_match_explicit_vectors(kind):
    fitted = fit(kind)
    codes = fitted.codes.numpy()
    residual = COLUMNS - ATOMS @ codes.T
    assert fitted.relative_error == pytest.approx(
        np.linalg.norm(residual) / np.linalg.norm(COLUMNS)
    )
    np.testing.assert_allclose(fitted.errors.numpy(), np.linalg.norm(residual, axis=0))
    np.testing.assert_allclose(fitted.atom_gram.numpy(), ATOMS.T @ ATOMS, atol=1e-12)
    assert fitted.kkt_residual <= 1e-9


def test_nnls_is_never_worse_than_the_others():
    best = fit("nnls").errors
    for kind in ("simplex", "ls_clamp"):
        assert bool((fit(kind).errors >= best - 1e-12).all())


def test_is_deterministic():
    assert torch.equal(fit("nnls").codes, fit("nnls").codes)
