"""Pooled relative errors against the norms of the stacked matrices themselves."""

import numpy as np
import pytest
import torch

from globe_stream.factorization.error_sums import (
    ErrorSums,
    by_expert,
    by_layer,
    pooled,
    pooled_by,
)

N, P, D = 7, 4, 5
LAYERS = torch.tensor([3, 0, 0, 3, 1, 1, 1])


@pytest.fixture
def matrices():
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(N, P, D)) * 10 ** generator.uniform(-2, 2, size=(N, 1, 1))
    return weights, weights + generator.normal(size=(N, P, D))


@pytest.fixture
def squares(matrices):
    weights, rebuilt = matrices
    return tuple(torch.from_numpy((x**2).sum((1, 2))) for x in (rebuilt - weights, weights))


def relative(weights, rebuilt):
    return np.linalg.norm(rebuilt - weights) / np.linalg.norm(weights)


def test_together_they_are_one_long_matrix(matrices, squares):
    assert ErrorSums.of(*squares).relative_error == pytest.approx(relative(*matrices))


def test_pooling_of_recorded_errors_weighs_by_norm_and_not_by_count(matrices):
    weights, rebuilt = matrices
    parts = [
        ErrorSums.from_relative(relative(weights[k], rebuilt[k]), float((weights[k] ** 2).sum()))
        for k in range(N)
    ]
    assert pooled(parts).relative_error == pytest.approx(relative(weights, rebuilt))
    families = pooled_by(zip(["up", "gate"] * 3 + ["up"], parts, strict=True))
    assert list(families) == ["up", "gate"]
    for first, name in enumerate(families):
        expected = relative(weights[first::2], rebuilt[first::2])
        assert families[name].relative_error == pytest.approx(expected)


def test_by_layer_and_by_expert(matrices, squares):
    weights, rebuilt = matrices
    layers = by_layer(*squares, LAYERS)
    assert list(layers) == [0, 1, 3]
    for layer, sums in layers.items():
        of_it = (layer == LAYERS).numpy()
        assert sums.relative_error == pytest.approx(relative(weights[of_it], rebuilt[of_it]))
    each = [relative(weights[k], rebuilt[k]) for k in range(N)]
    np.testing.assert_allclose(by_expert(*squares), each)


def test_experts_that_are_zero():
    assert ErrorSums().relative_error == pooled([]).relative_error == 0.0
    assert ErrorSums(1.0, 0.0).relative_error == float("inf")
    errors, norms = torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0.0, 0.0, 4.0])
    assert by_expert(errors, norms).tolist() == [0.0, float("inf"), 0.5]


def test_rounding_below_zero_counts_as_zero():
    assert ErrorSums(-1e-18, 4.0).relative_error == 0.0
    assert by_expert(torch.tensor([-1e-18]), torch.tensor([4.0])).tolist() == [0.0]
