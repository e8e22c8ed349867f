"""What a ridge does to a system, against numpy; counts of values that are no numbers."""

import math

import numpy as np
import pytest
import torch

from globe_stream.kernels.ridge_effect import nonfinite, ridge_effect


def system(rank=9, size=9):
    half = torch.randn(size, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return half @ half.T


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_it_is_what_inverse_and_condition_numbers_say(ridge):
    gram = system()
    found, plain = ridge_effect(gram, ridge), gram.numpy()
    added = plain + ridge * np.trace(plain) / len(plain) * np.eye(len(plain))
    assert found.condition_before == pytest.approx(np.linalg.cond(plain), rel=1e-6)
    assert found.condition_after == pytest.approx(np.linalg.cond(added), rel=1e-9)
    freedom = np.trace(plain @ np.linalg.inv(added))
    assert found.shrinkage == pytest.approx(1 - freedom / len(plain), rel=1e-9)


def test_without_ridge_nothing_is_taken():
    found = ridge_effect(system(), 0.0)
    assert found.shrinkage == pytest.approx(0, abs=1e-12)
    assert found.condition_before == found.condition_after


def test_a_singular_system_becomes_regular():
    found = ridge_effect(torch.diag(torch.tensor([0.0, 1.0, 2.0])), 1.0)
    assert found.condition_before == math.inf
    assert found.condition_after == pytest.approx(3.0)
    assert found.shrinkage == pytest.approx(1 - (0 + 1 / 2 + 2 / 3) / 3)


def test_larger_ridges_take_more():
    taken = [ridge_effect(system(), ridge).shrinkage for ridge in (0.0, 1e-4, 1e-2, 1.0, 100.0)]
    assert taken == sorted(taken)
    assert taken[-1] > 0.95


def test_values_that_are_no_numbers_are_counted():
    values = torch.ones(3, 4)
    assert nonfinite(values) == 0
    values[0, 0], values[1, 2], values[2, 3] = math.nan, math.inf, -math.inf
    assert nonfinite(values) == 3
    assert nonfinite(torch.full((4,), 3e38)) == 0, "an overflowing sum is not a value"
