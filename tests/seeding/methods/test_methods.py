"""What every seeding method promises, on explicit proxies."""

import pytest
import torch

from globe_stream.config import SeedConfig
from globe_stream.errors import GlobeError, InputError
from globe_stream.seeding.methods import (
    REGISTRY,
    GramView,
    codes_from_gram,
    gram_products,
    proxies_for,
    run_method,
)

RANDOMISED = ("rpca", "spherical_kmeans", "svd", "nn_dictionary")


def group_proxies(size, dimension, *, decay=0.0, seed=0):
    """Unit-norm columns (dimension, size) whose directions fade by `decay` decades."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -decay, dimension, dtype=torch.float64)
    points = scales[:, None] * torch.randn(
        dimension, size, generator=generator, dtype=torch.float64
    )
    return points / points.norm(dim=0)


def run(method, proxies, count, **options):
    config = SeedConfig(method=method, dictionary_rounds=20, **options)
    return run_method(config, GramView.dense(proxies.T @ proxies), count)


def span_share(proxies, atoms):
    """Energy of the projections of the proxies on the span of the atoms, over all energy."""
    left, values, _ = torch.linalg.svd(atoms, full_matrices=False)
    basis = left[:, values > 1e-8 * values[0]]
    return float((basis.T @ proxies).square().sum() / proxies.square().sum())


@pytest.fixture(scope="module")
def proxies():
    return group_proxies(40, 60, decay=1.0)


@pytest.mark.parametrize("method", REGISTRY)
def test_atoms_have_group_norm_and_the_reported_span(method, proxies):
    atoms = run(method, proxies, 8)
    assert atoms.combination.shape == (40, 8)
    assert atoms.combination.dtype == torch.float64
    explicit = proxies @ atoms.combination
    torch.testing.assert_close(explicit.norm(dim=0), torch.ones(8, dtype=torch.float64))
    assert atoms.explained_variance == pytest.approx(span_share(proxies, explicit), abs=1e-9)


@pytest.mark.parametrize("method", REGISTRY)
def test_codes_explain_at_least_the_best_single_proxy(method, proxies):
    """Any of these beats 8 proxies taken at random, with non-negative codes."""
    view = GramView.dense(proxies.T @ proxies)
    error = codes_from_gram(view, run(method, proxies, 8).combination).relative_error
    picked = torch.eye(40, dtype=torch.float64)[:, 7::4][:, :8]
    assert error < codes_from_gram(view, picked).relative_error


@pytest.mark.parametrize("method", REGISTRY)
@pytest.mark.parametrize("size", [9, 8])
def test_hardly_more_experts_than_atoms(method, size):
    proxies = group_proxies(size, 30, seed=3)
    atoms = run(method, proxies, 8, hybrid_variant="greedy")
    assert bool(torch.isfinite(atoms.combination).all())
    fitted = codes_from_gram(GramView.dense(proxies.T @ proxies), atoms.combination)
    assert fitted.relative_error < 0.75


@pytest.mark.parametrize("method", REGISTRY)
def test_one_atom(method, proxies):
    atoms = run(method, proxies, 1)
    assert 0 < atoms.explained_variance < 1


@pytest.mark.parametrize("method", REGISTRY)
@pytest.mark.parametrize("count", [0, 41])
def test_counts_out_of_range_are_refused(method, count, proxies):
    with pytest.raises(InputError, match=rf"{count} bases asked of 40 experts"):
        run(method, proxies, count)


@pytest.mark.parametrize("method", ["ts_pca", "left_gram_pca", "rpca"])
def test_pca_refuses_more_components_than_dimensions(method):
    with pytest.raises(InputError, match=r"span 6 dimensions; give bases 6 or fewer"):
        run(method, group_proxies(30, 6), 8)


@pytest.mark.parametrize("method", ["spherical_kmeans", "nn_dictionary"])
def test_kmeans_works_beyond_the_rank_but_not_beyond_the_distinct_proxies(method):
    flat = group_proxies(30, 6)
    assert run(method, flat, 8).explained_variance == pytest.approx(1.0)
    repeated = flat[:, torch.arange(30) % 5]
    with pytest.raises(InputError, match="8 bases asked of 5 distinct proxies"):
        run(method, repeated, 8)


def test_greedy_refuses_atoms_that_nothing_is_left_for():
    proxies = group_proxies(3, 20)[:, torch.arange(12) % 3]
    with pytest.raises(InputError, match="explain the proxies exactly"):
        run("residual_greedy", proxies, 8)


@pytest.mark.parametrize("method", REGISTRY)
def test_same_seed_same_atoms(method, proxies):
    first, second = (run(method, proxies, 6, seed=5) for _ in range(2))
    assert torch.equal(first.combination, second.combination)
    assert first.stats == second.stats


@pytest.mark.parametrize("method", RANDOMISED)
def test_another_seed_gives_other_atoms(method, proxies):
    first, second = (run(method, proxies, 6, seed=seed) for seed in (1, 2))
    assert not torch.allclose(first.combination, second.combination)


def test_default_and_allowed_proxies():
    assert proxies_for("ts_pca") == "rows"
    assert proxies_for("svd") == "svd"
    assert proxies_for("nn_dictionary") == "procrustes"
    assert proxies_for("nn_dictionary", "rows") == "rows"
    with pytest.raises(InputError, match="proxies svd does not go with method ts_pca"):
        proxies_for("ts_pca", "svd")


def test_only_rpca_may_do_without_the_gram_matrix(monkeypatch):
    products = {name: gram_products(SeedConfig(method=name), 10**6, 50) for name in REGISTRY}
    assert {name for name, count in products.items() if count is not None} == {"rpca"}
    assert products["rpca"] == 50 + 8
    assert gram_products(SeedConfig(method="rpca"), 240, 50) is None
    monkeypatch.setattr("globe_stream.seeding.methods.LARGEST_DENSE", 100)
    assert gram_products(SeedConfig(method="rpca"), 240, 238) == 240


def test_views_refuse_what_is_no_gram_matrix():
    with pytest.raises(GlobeError, match="not square"):
        GramView.dense(torch.ones(2, 3))
    with pytest.raises(GlobeError, match="not symmetric"):
        GramView.dense(torch.tensor([[1.0, 0.5], [0.1, 1.0]]))
    with pytest.raises(GlobeError, match="NaN"):
        GramView.dense(torch.full((2, 2), torch.nan))
