"""Gram-space PCA against scikit-learn and explicit randomised SVD."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.utils.extmath import randomized_svd
from support import seed_options

from globe_stream.errors import GlobeError
from globe_stream.seeding.methods import GramView, codes_from_gram
from globe_stream.seeding.methods.greedy import residual_greedy
from globe_stream.seeding.methods.pca import (
    gram_pca,
    principal_components,
    randomized_pca,
    range_finder,
    simplex_frame,
)

FLIP = seed_options(pca_signs="flip")


def symmetric_proxies(decay=1.0):
    """Unit-norm columns (30, 50) that come in pairs x, -x, so that their mean is zero."""
    rng = np.random.default_rng(0)
    half = np.logspace(0, -decay, 30)[:, None] * rng.standard_normal((30, 25))
    half /= np.linalg.norm(half, axis=0)
    return np.hstack([half, -half])


def view_of(proxies):
    return GramView.dense(torch.from_numpy(proxies.T @ proxies))


class Product:
    """An operator view of explicit proxies that counts its products."""

    def __init__(self, proxies):
        self.proxies, self.calls = torch.from_numpy(proxies), 0
        self.shape = (proxies.shape[1], proxies.shape[1])

    def matmul(self, vectors):
        self.calls += 1
        return self.proxies.T @ (self.proxies @ vectors)


def test_explained_variance_matches_scikit_learn():
    proxies = symmetric_proxies()
    reference = PCA(n_components=7, svd_solver="full").fit(proxies.T)
    atoms = gram_pca(view_of(proxies), 7, FLIP)
    assert atoms.explained_variance == pytest.approx(reference.explained_variance_ratio_.sum())
    explicit = proxies @ atoms.combination.numpy()
    cosines = np.abs(reference.components_ @ explicit)
    np.testing.assert_allclose(cosines, np.eye(7), atol=1e-8)


def test_components_are_orthonormal():
    proxies = symmetric_proxies()
    explicit = proxies @ principal_components(view_of(proxies), 9).combination.numpy()
    np.testing.assert_allclose(explicit.T @ explicit, np.eye(9), atol=1e-10)


def explicit_randomised(proxies, count, options):
    """Halko, Martinsson, Tropp, algorithm 5.1 after 4.3, on the matrix itself."""
    width = count + options.config.oversampling
    probe = torch.randn(
        proxies.shape[1], width, generator=options.generator(), dtype=torch.float64
    ).numpy()
    sample = proxies @ probe
    for _ in range(options.config.power_iterations):
        sample = proxies @ (proxies.T @ sample)
    basis = np.linalg.qr(sample)[0]
    left, values, _ = np.linalg.svd(basis.T @ proxies, full_matrices=False)
    return basis @ left[:, :count], values[:count]


@pytest.mark.parametrize("power_iterations", [0, 1, 3])
def test_range_finder_matches_the_explicit_algorithm(power_iterations):
    proxies = symmetric_proxies(decay=0.3)
    options = seed_options(oversampling=3, power_iterations=power_iterations, seed=4)
    directions, values = explicit_randomised(proxies, 6, options)
    found = range_finder(view_of(proxies), 6, options)
    np.testing.assert_allclose(found.values.sqrt().numpy(), values, rtol=1e-9)
    cosines = np.abs((proxies @ found.combination.numpy() * directions).sum(0))
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


def test_randomised_values_match_scikit_learn():
    proxies = symmetric_proxies(decay=3.0)
    expected = randomized_svd(proxies, 6, n_iter=8, random_state=0)[1]
    options = seed_options(power_iterations=8)
    np.testing.assert_allclose(
        range_finder(view_of(proxies), 6, options).values.sqrt().numpy(), expected, rtol=1e-6
    )


def test_power_iterations_approach_the_exact_variance():
    proxies = symmetric_proxies(decay=0.3)
    exact = gram_pca(view_of(proxies), 6, FLIP).explained_variance
    found = [
        randomized_pca(
            view_of(proxies), 6, seed_options(pca_signs="flip", power_iterations=n)
        ).explained_variance
        for n in (0, 2, 30)
    ]
    assert found == sorted(found)
    assert found[0] < exact
    assert found[2] == pytest.approx(exact, rel=1e-6)


def test_operator_and_dense_views_agree():
    proxies = np.ascontiguousarray(symmetric_proxies()[:, :25])  # pairs x, -x tie in sign
    product = Product(proxies)
    operator = GramView.operator(product)
    options = seed_options(power_iterations=2)
    found = randomized_pca(operator, 6, options)
    assert product.calls == 4
    expected = randomized_pca(view_of(proxies), 6, options)
    torch.testing.assert_close(found.combination, expected.combination)
    torch.testing.assert_close(
        operator.eigenvalues(), view_of(proxies).eigenvalues()[:6], rtol=1e-3, atol=0
    )


def test_methods_that_need_the_matrix_say_so():
    operator = GramView.operator(Product(symmetric_proxies()))
    with pytest.raises(GlobeError, match="use rpca instead"):
        gram_pca(operator, 3, seed_options())
    assert residual_greedy(operator, 3, seed_options()).combination.shape == (50, 3)


@pytest.mark.parametrize("count", [2, 3, 9, 60])
def test_simplex_frame_is_regular(count):
    frame = simplex_frame(count)
    assert frame.shape == (count - 1, count)
    expected = torch.full((count, count), -1 / (count - 1), dtype=torch.float64)
    expected.fill_diagonal_(1.0)
    torch.testing.assert_close(frame.T @ frame, expected)
    torch.testing.assert_close(frame.sum(1), torch.zeros(count - 1, dtype=torch.float64))


def test_simplex_signs_lose_nothing_to_non_negative_codes():
    proxies = symmetric_proxies()
    view = view_of(proxies)
    atoms = gram_pca(view, 8, seed_options(pca_signs="simplex"))
    signed = gram_pca(view, 7, FLIP).explained_variance
    assert atoms.explained_variance == pytest.approx(signed)
    fitted = codes_from_gram(view, atoms.combination)
    assert fitted.relative_error**2 == pytest.approx(1 - signed)


def test_flipped_atoms_get_clamped_coefficients_of_the_larger_sign():
    proxies = symmetric_proxies()[:, :25]  # one of each pair: signs matter
    view = view_of(proxies)
    atoms = gram_pca(view, 8, FLIP)
    coefficients = (proxies @ atoms.combination.numpy()).T @ proxies
    positive, negative = np.maximum(coefficients, 0), np.maximum(-coefficients, 0)
    assert bool(((positive**2).sum(1) >= (negative**2).sum(1)).all())
    codes = codes_from_gram(view, atoms.combination, kind="ls_clamp").codes
    np.testing.assert_allclose(codes.numpy(), positive.T, atol=1e-9)
