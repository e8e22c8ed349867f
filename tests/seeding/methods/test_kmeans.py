"""Spherical k-means against explicit vectors and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from support import seed_options

from globe_stream.seeding.methods import GramView
from globe_stream.seeding.methods.kmeans import cluster, first_centres, lloyd, spherical_kmeans


def points(size=60, dimension=12, groups=0, spread=0.05, seed=0):
    """Unit rows (size, dimension); in well-separated groups if asked."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((size, dimension))
    if groups:
        middles = np.linalg.qr(rng.standard_normal((dimension, groups)))[0].T
        rows = middles[np.arange(size) % groups] + spread * rows
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def gram(rows):
    return torch.from_numpy(rows @ rows.T)


def explicit_lloyd(rows, start, iterations):
    """Dhillon and Modha's iteration on the vectors themselves."""
    centres = rows[start]
    for _ in range(iterations):
        labels = (rows @ centres.T).argmax(1)
        sums = np.stack([rows[labels == k].sum(0) for k in range(len(start))])
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return labels, (rows * centres[labels]).sum()


@pytest.mark.parametrize("init", ["kmeans++", "farthest"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lloyd_matches_the_explicit_algorithm(init, seed):
    rows = points(seed=seed)
    options = seed_options(kmeans_init=init, seed=seed)
    start = first_centres(gram(rows), 7, options, options.generator())
    found = lloyd(gram(rows), start, 100)
    labels, objective = explicit_lloyd(rows, start.numpy(), 100)
    np.testing.assert_array_equal(found.labels.numpy(), labels)
    assert found.objective == pytest.approx(objective)
    assert found.reseeded == 0


def test_separated_groups_match_scikit_learn():
    rows = points(groups=5)
    options = seed_options()
    start = first_centres(gram(rows), 5, options, options.generator())
    reference = KMeans(5, init=rows[start.numpy()], n_init=1).fit(rows)
    labels = lloyd(gram(rows), start, 50).labels.numpy()
    inertia = sum(((rows[labels == k] - rows[labels == k].mean(0)) ** 2).sum() for k in range(5))
    assert inertia == pytest.approx(reference.inertia_)


def test_objective_never_falls():
    rows = points(200, 5)
    start = torch.arange(9)
    objectives = [lloyd(gram(rows), start, n).objective for n in range(1, 15)]
    assert objectives == sorted(objectives)
    assert objectives[-1] > objectives[0]


def test_farthest_first_takes_the_farthest():
    rows = points()
    options = seed_options(kmeans_init="farthest")
    chosen = first_centres(gram(rows), 6, options, options.generator()).tolist()
    for k in range(1, 6):
        nearest = (rows @ rows[chosen[:k]].T).max(1)
        assert chosen[k] == nearest.argmin()


def test_kmeans_plus_plus_covers_separated_groups_and_beats_uniform_draws():
    rows = points(60, 12, groups=6)
    for seed in range(20):
        options = seed_options(seed=seed)
        chosen = first_centres(gram(rows), 6, options, options.generator())
        assert sorted((chosen % 6).tolist()) == list(range(6))


def test_kmeans_plus_plus_draws_in_proportion_to_distance():
    """With two centres, the second is never a copy of the first, however many copies exist."""
    rows = np.vstack([np.tile([1.0, 0.0, 0.0], (50, 1)), [[0.0, 1.0, 0.0]]])
    for seed in range(20):
        options = seed_options(seed=seed)
        chosen = first_centres(gram(rows), 2, options, options.generator()).tolist()
        assert (chosen[0] == 50) != (chosen[1] == 50)


def test_empty_clusters_are_reseeded():
    rows = points(groups=3)
    twins = torch.tensor([0, 3, 3])  # the third centre is a copy: it gets no members
    found = lloyd(gram(rows), twins, 50)
    assert found.reseeded >= 1
    assert bool((torch.bincount(found.labels, minlength=3) > 0).all())
    assert bool(torch.isfinite(found.combination).all())


def test_centres_are_normalised_sums_of_members():
    rows = points()
    atoms = spherical_kmeans(GramView.dense(gram(rows)), 6, seed_options())
    members = atoms.combination > 0
    assert bool((members.sum(1) == 1).all())
    explicit = rows.T @ atoms.combination.numpy()
    sums = rows.T @ members.double().numpy()
    np.testing.assert_allclose(explicit, sums / np.linalg.norm(sums, axis=0), atol=1e-12)


def test_without_iterations_the_centres_are_proxies_as_far_apart_as_can_be():
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    data /= data.norm(dim=1, keepdim=True)
    gram = data @ data.T
    options = seed_options(kmeans_init="farthest", kmeans_iterations=0)
    found = cluster(gram, 5, options, torch.Generator().manual_seed(0))
    chosen = found.combination.argmax(0).tolist()
    assert sorted(found.combination.flatten().tolist()) == [0.0] * 95 + [1.0] * 5
    for k in range(1, 5):
        nearest = gram[:, chosen[:k]].max(1).values
        assert chosen[k] == int(nearest.argmin())
    assert found.labels.tolist() == (gram[:, chosen]).argmax(1).tolist()
    assert found.objective == pytest.approx(float(gram[:, chosen].max(1).values.sum()))
