"""The normalization of a group's weights against numpy."""

import numpy as np
import pytest
import torch

from globe_stream.errors import InputError
from globe_stream.factorization.normalization import MEAN_SHARE, Normalization


def of(values):
    return Normalization.from_sums(float(values.sum()), float((values**2).sum()), values.size)


def test_mean_and_deviation_of_all_elements():
    values = np.random.default_rng(0).normal(0.3, 2.0, size=(50, 40))
    assert of(values).mean == pytest.approx(values.mean())
    assert of(values).scale == pytest.approx(values.std())


@pytest.mark.parametrize(("share", "kept"), [(0.9 * MEAN_SHARE, False), (1.1 * MEAN_SHARE, True)])
def test_a_negligible_mean_is_left_in_the_weights(share, kept):
    values = np.random.default_rng(0).normal(size=10000)
    values = (values - values.mean()) / values.std() + share
    assert (of(values).mean != 0) == kept
    left = values - of(values).mean
    assert of(values).scale == pytest.approx(np.sqrt((left**2).mean()))


def test_undoing_it_gives_the_weights_back():
    weights = torch.randn(7, 5, dtype=torch.float64) + 3
    normalization = of(weights.numpy())
    normal = normalization.apply_(weights.clone())
    assert float(normal.std(correction=0)) == pytest.approx(1)
    torch.testing.assert_close(normalization.undo_(normal), weights)


def test_equal_weights_are_refused():
    with pytest.raises(InputError, match="all weights of the selected experts are equal"):
        of(np.full(100, 0.5))
