"""Non-negative dictionary learning against MOD and NNLS on explicit vectors."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import nnls as scipy_nnls
from support import seed_options

from globe_stream.seeding.methods import GramView, codes_from_gram
from globe_stream.seeding.methods.kmeans import spherical_kmeans
from globe_stream.seeding.methods.mod import learn, nn_dictionary


def proxies(size=40, dimension=25, seed=0):
    columns = np.random.default_rng(seed).standard_normal((dimension, size))
    return columns / np.linalg.norm(columns, axis=0)


def planted(size=80, atoms=6, dimension=40, support=2, seed=1):
    """Unit-norm sparse non-negative mixtures of planted atoms, noiseless."""
    rng = np.random.default_rng(seed)
    bank = rng.standard_normal((dimension, atoms))
    codes = np.zeros((atoms, size))
    for i in range(size):
        codes[rng.choice(atoms, support, replace=False), i] = rng.uniform(0.5, 1.5, support)
    columns = bank @ codes
    return columns / np.linalg.norm(columns, axis=0), bank / np.linalg.norm(bank, axis=0)


def start_of(columns, count):
    view = GramView.dense(torch.from_numpy(columns.T @ columns))
    return view, spherical_kmeans(view, count, seed_options()).combination


def explicit_rounds(columns, atoms, rounds):
    """Squared errors of NNLS codes before each MOD step and after the last."""
    errors = []
    for step in range(rounds + 1):
        codes = np.stack([scipy_nnls(atoms, x)[0] for x in columns.T], axis=1)
        errors.append(((columns - atoms @ codes) ** 2).sum())
        if step < rounds:
            atoms = np.linalg.lstsq(codes.T, columns.T, rcond=None)[0].T
            atoms = atoms / np.linalg.norm(atoms, axis=0)
    return errors


def test_rounds_match_the_explicit_algorithm():
    columns = proxies()
    view, start = start_of(columns, 7)
    learned = learn(view.matrix(), start, 6, coding_steps=5000)
    assert learned.replaced == 0
    expected = explicit_rounds(columns, columns @ start.numpy(), 6)
    np.testing.assert_allclose(learned.errors, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("support", [None, 3])
def test_error_never_rises(support):
    view, start = start_of(proxies(120, 20), 15)
    errors = learn(view.matrix(), start, 40, support).errors
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(errors))
    assert errors[-1] < 0.97 * errors[0]


def limited_error(view, combination, support):
    codes = codes_from_gram(view, combination).codes
    kept = codes.topk(support, dim=1)
    linear = (view.matmul(combination)).numpy()
    gram = (combination.T @ view.matmul(combination)).numpy()
    total = 0.0
    for i, index in enumerate(kept.indices.numpy()):
        inner = gram[np.ix_(index, index)]
        factor = np.linalg.cholesky(inner)
        residual = scipy_nnls(factor.T, np.linalg.solve(factor, linear[i, index]))[1] ** 2
        part = np.linalg.solve(factor, linear[i, index])
        total += 1 - part @ part + residual
    return (total / view.size) ** 0.5


@pytest.mark.slow
def test_learning_with_few_atoms_a_code_makes_better_sparse_codes():
    view, start = start_of(proxies(120, 60), 20)
    free = learn(view.matrix(), start, 40).combination
    sparse = learn(view.matrix(), start, 40, 2).combination
    assert limited_error(view, sparse, 2) < limited_error(view, free, 2) - 0.005
    assert codes_from_gram(view, free).relative_error < codes_from_gram(view, sparse).relative_error


def test_reported_error_is_that_of_the_sparse_codes():
    view, start = start_of(proxies(60, 30), 8)
    learned = learn(view.matrix(), start, 5, 2)
    error = (learned.errors[-1] / view.size) ** 0.5
    full = codes_from_gram(view, learned.combination).relative_error
    assert full < error <= limited_error(view, learned.combination, 2) + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_mixtures_are_explained(seed):
    columns, _ = planted()
    view = GramView.dense(torch.from_numpy(columns.T @ columns))
    atoms = nn_dictionary(view, 6, seed_options(dictionary_rounds=500, seed=seed))
    assert codes_from_gram(view, atoms.combination).relative_error < 0.02


def test_planted_atoms_are_found_when_the_support_is_known():
    columns, bank = planted()
    view = GramView.dense(torch.from_numpy(columns.T @ columns))
    atoms = nn_dictionary(view, 6, seed_options(dictionary_rounds=500, dictionary_support=2))
    cosines = bank.T @ (columns @ atoms.combination.numpy())
    assert cosines.max(1).min() > 0.95


def test_dead_atoms_are_replaced_by_the_worst_explained_proxy():
    columns = np.abs(proxies(30, 20))  # no two of them point apart
    columns[:, :28] = columns[:, :2].repeat(14, axis=1) + 0.1 * columns[:, :28]
    columns /= np.linalg.norm(columns, axis=0)  # two groups and two loners
    view = GramView.dense(torch.from_numpy(columns.T @ columns))
    start = torch.zeros(30, 4, dtype=torch.float64)
    start[:14, 0] = start[14:28, 1] = start[28, 2] = start[29, 3] = 1.0
    start[29, 2] = start[28, 3] = -3.0  # point away from everything: first choice of none
    learned = learn(view.matrix(), start, 5, support=1)
    assert learned.replaced == 2
    assert learned.errors[1] < 0.5 * learned.errors[0]
    uses = (codes_from_gram(view, learned.combination).codes > 0.5).sum(0)
    assert bool((uses > 0).all())


def test_stats_tell_the_course():
    view, _ = start_of(proxies(), 7)
    stats = nn_dictionary(view, 7, seed_options(dictionary_rounds=4)).stats
    assert stats["dictionary/rounds"] == 4
    assert stats["dictionary/last_error"] < stats["dictionary/first_error"]


def test_every_round_is_shown_with_its_error():
    columns, _ = planted()
    view, start = start_of(columns, 6)
    shown = []
    learned = learn(view.matrix(), start, 12, progress=lambda *call: shown.append(call))
    assert [(done, total) for done, total, _ in shown] == [
        (k, 12) for k in range(1, len(learned.errors))
    ]
    last = (learned.errors[-1] / columns.shape[1]) ** 0.5
    assert shown[-1][2] == f"error {last:.4f}"
