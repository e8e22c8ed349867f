"""The first pass and normalisation against numpy float64 over all experts at once."""

import numpy as np
import pytest
import torch

from globe_stream.checkpoint.reader import Batch
from globe_stream.errors import InputError
from globe_stream.factorization.normalization import Normalization
from globe_stream.seeding.statistics import StatisticsAccumulator
from globe_stream.store import arrays

N, P, D, R = 11, 6, 9, 4
SUBSET = frozenset({0, 3, 4, 10})
KINDS = {"left_gram", "procrustes"}
CPU = torch.device("cpu")


def experts(offset=0.3):
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(N, 1, 1, generator=generator) + 0.5
    return spread * torch.randn(N, P, D, generator=generator) + offset


def empty(kinds=KINDS, subset=SUBSET):
    return StatisticsAccumulator([Shape] * N, subset, kinds, R, CPU)


def gathered(weights, *, kinds=KINDS, batch=4, subset=SUBSET):
    passing = empty(kinds, subset)
    for first in range(0, N, batch):
        positions = list(range(first, min(first + batch, N)))
        passing.update(Batch(positions, weights[positions].clone()))
    return passing


class Shape:
    """All that the accumulator asks of an expert."""

    shape = (P, D)


@pytest.mark.parametrize("offset", [0.1, 0.3, 5.0])
def test_zscore_is_the_mean_and_deviation_of_all_elements(offset):
    weights = experts(offset)
    by = gathered(weights).result().normalization("zscore")
    exact = weights.double().numpy()
    assert by.mean == pytest.approx(exact.mean(), abs=1e-7)
    assert by.scale == pytest.approx(exact.std(), rel=1e-6)


def test_a_negligible_mean_is_left_in():
    weights = experts(0.0)
    weights += 0.004 * weights.std() - weights.mean()
    by = gathered(weights).result().normalization("zscore")
    assert by.mean == 0.0
    assert by.scale == pytest.approx(float(weights.double().square().mean().sqrt()), rel=1e-6)


def test_without_normalisation_it_is_the_identity():
    assert gathered(experts()).result().normalization("none") == Normalization(0.0, 1.0)


@pytest.mark.parametrize("kind", ["zscore", "none"])
def test_normalised_quantities_follow_from_raw_sums(kind):
    weights = experts()
    passing = gathered(weights)
    found = passing.result()
    by = found.normalization(kind)
    exact = (weights.double().numpy() - by.mean) / by.scale
    np.testing.assert_allclose(found.norms, (weights.double().numpy() ** 2).sum((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(
        found.normalized_norms(by, passing.expert_sums), (exact**2).sum((1, 2)), rtol=1e-5
    )
    rows = (exact[sorted(SUBSET)] ** 2).sum((0, 2))
    np.testing.assert_allclose(found.row_energy(by), rows, rtol=1e-5)
    gram = np.einsum("npd,nqd->pq", exact, exact)
    np.testing.assert_allclose(found.normalized_left_gram(by), gram, atol=1e-4 * gram.max())


def test_applying_it_and_folding_it_back_gives_the_weights():
    weights = experts(5.0)
    by = gathered(weights).result().normalization("zscore")
    normal = by.apply_(weights.clone())
    assert float(normal.mean()) == pytest.approx(0, abs=1e-5)
    assert float(normal.std(correction=0)) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(normal.double() * by.scale + by.mean, weights.double(), rtol=1e-6,
                               atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3, 11])
def test_the_batch_does_not_matter_beyond_rounding(batch):
    one, other = gathered(experts()).result(), gathered(experts(), batch=batch).result()
    for name in ("norms", "row_sum", "subset_energy", "subset_sum", "left_gram", "procrustes_mean"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-5)


def test_equal_weights_are_refused():
    with pytest.raises(InputError, match="all weights of the selected experts are equal"):
        gathered(torch.full((N, P, D), 0.5)).result().normalization("zscore")


def test_only_what_the_kinds_need_is_gathered():
    neither, one = gathered(experts(), kinds={"rows"}), gathered(experts(), kinds={"procrustes"})
    assert neither.result().left_gram is neither.result().procrustes_mean is None
    assert one.result().left_gram is None
    assert one.result().procrustes_mean.shape == (R, D)


def test_a_restored_pass_continues_to_the_same_bits(tmp_path):
    weights = experts()
    whole = gathered(weights, batch=5)
    first = empty()
    first.update(Batch(list(range(5)), weights[:5].clone()))
    for name, source in first.arrays().items():
        arrays.write(tmp_path / name, source)
    second = empty()
    second.restore(lambda name: tmp_path / name, first.scalars())
    for start in (5, 10):
        positions = list(range(start, min(start + 5, N)))
        second.update(Batch(positions, weights[positions].clone()))
    for name, source in whole.arrays().items():
        assert torch.equal(source, second.arrays()[name]), name
