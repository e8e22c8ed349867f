"""The truncated SVD of single experts against torch.linalg.svd in float64."""

import pytest
import torch

from globe_stream.checkpoint.reader import Batch
from globe_stream.factorization.sizes import GroupSizes
from globe_stream.factorization.svd_baseline import (
    BaselineAccumulator,
    Spectrum,
    SvdApproximation,
    lost_energy,
    svd_curve,
    truncate,
)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
@pytest.mark.parametrize("rank", [0, 7, 20, 25])
def test_truncation_against_torch(shape, rank):
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    left, values, right = torch.linalg.svd(weights.double(), full_matrices=False)
    expected = left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank]
    torch.testing.assert_close(truncate(weights, rank).double(), expected, rtol=0, atol=1e-5)
    lost = float((weights - expected).square().sum())
    assert lost_energy(weights, rank) == pytest.approx(lost, rel=1e-5, abs=1e-9)
    assert torch.equal(truncate(weights, rank), truncate(weights, rank))


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_the_accumulated_error_keeps_its_digits(shape):
    """Experts of rank 5 up to 1e-5: products in float32 would lose the error to rounding."""
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(6, shape[0], 5, generator=generator)
    right = torch.randn(6, 5, shape[1], generator=generator)
    weights = left @ right + 1e-5 * torch.randn(6, *shape, generator=generator)
    energies = torch.linalg.svdvals(weights.double()).square()
    expected = float((energies[:, 5:].sum() / energies.sum()).sqrt())
    accumulator = BaselineAccumulator(5, 20)
    for first in (0, 4):
        positions = list(range(first, min(first + 4, 6)))
        accumulator.update(Batch(positions, weights[positions]))
    assert accumulator.relative_error == pytest.approx(expected, rel=1e-4)
    assert accumulator.energies.tolist() == pytest.approx(energies.sum(0).tolist(), rel=1e-6)


def test_the_curve_is_truncation_of_all_groups_at_every_size():
    """Two groups, one of them by a sample; against dense matrices cut by torch.linalg.svd."""
    generator = torch.Generator().manual_seed(4)
    groups = [torch.randn(4, 12, 20, generator=generator) * scale for scale in (1.0, 3.0)]
    groups[1][2:] = groups[1][:2]
    spectra = []
    for weights, sampled in zip(groups, (4, 2), strict=True):
        found = BaselineAccumulator(3, 12)
        found.update(Batch(list(range(sampled)), weights[:sampled]))
        norm = float(weights.double().square().sum())
        spectra.append(Spectrum(GroupSizes(4, 12, 20, 5, 2, 2), found.energies, norm))
    curve = svd_curve(spectra)
    assert [kept for kept, _ in curve] == [rank * 32 / 240 for rank in range(1, 8)]
    whole = torch.cat(groups).double()
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    for rank, (_, error) in enumerate(curve, start=1):
        cut = (left[:, :, :rank] * values[:, None, :rank]) @ right[:, :rank]
        expected = float((cut - whole).norm() / whole.norm())
        assert error == pytest.approx(expected, rel=1e-6)
    assert svd_curve([]) == []


def test_replacing_an_expert_is_truncating_it():
    weights = torch.randn(6, 9, generator=torch.Generator().manual_seed(2))
    assert torch.equal(SvdApproximation(3).replace(17, weights), truncate(weights, 3))


def test_a_tall_expert_costs_as_much_as_its_transpose():
    tall, wide = GroupSizes(4, 30, 20, 5, 2, 2), GroupSizes(4, 20, 30, 5, 2, 2)
    assert tall.spectrum_operations == wide.spectrum_operations
