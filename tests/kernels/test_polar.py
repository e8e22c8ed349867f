"""Polar factors against the SVD."""

import pytest
import torch

from globe_stream.errors import GlobeError
from globe_stream.kernels.polar import minimax_schedule, polar_rows


def with_condition(condition, b=3, r=20, k=33, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    left, _, right = torch.linalg.svd(
        torch.randn(b, r, k, generator=generator, dtype=torch.float64), full_matrices=False
    )
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), r).double()
    return (5.0 * left * values @ right).to(dtype), left @ right


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e3, 1e5])
def test_matches_svd(condition):
    matrices, expected = with_condition(condition)
    result = polar_rows(matrices)
    assert result.fallbacks == 0
    torch.testing.assert_close(result.rows, expected, atol=1e-5, rtol=0)
    assert float(result.residual.max()) <= 1e-5


def test_float32():
    matrices, expected = with_condition(100.0, r=96, k=128, dtype=torch.float32)
    result = polar_rows(matrices)
    assert result.rows.dtype == torch.float32
    assert result.fallbacks == 0
    # Rounding of the input (1e-7) is magnified by the condition number.
    torch.testing.assert_close(result.rows.double(), expected, atol=2e-4, rtol=0)


def test_rank_deficient_matrices_are_solved_exactly_and_counted():
    matrices, expected = with_condition(10.0)
    matrices[1] = matrices[1, :1]
    result = polar_rows(matrices)
    assert result.fallbacks == 1
    torch.testing.assert_close(result.rows[[0, 2]], expected[[0, 2]], atol=1e-5, rtol=0)
    gram = result.rows @ result.rows.transpose(1, 2)
    torch.testing.assert_close(gram, torch.eye(20).double().expand(3, -1, -1), atol=1e-6, rtol=0)


def test_is_the_nearest_of_many_orthonormal_matrices():
    matrices, _ = with_condition(50.0, b=1, r=4, k=6)
    best = (matrices - polar_rows(matrices).rows).norm()
    generator = torch.Generator().manual_seed(0)
    tries = torch.linalg.qr(torch.randn(500, 6, 4, generator=generator, dtype=torch.float64))[0]
    assert float(best) < float((matrices - tries.transpose(1, 2)).norm(dim=(1, 2)).min())


def test_scale_does_not_matter():
    matrices, expected = with_condition(30.0, dtype=torch.float32)
    for scale in (1e-20, 1e20):
        rows = polar_rows(matrices * scale).rows
        torch.testing.assert_close(rows.double(), expected, atol=1e-4, rtol=0)


def test_schedule_maps_its_interval_to_one():
    values = torch.logspace(-3, 0, 2001, dtype=torch.float64)
    for first, third, fifth in minimax_schedule(1e-3):
        values = first * values + third * values**3 + fifth * values**5
    assert float((values - 1).abs().max()) < 1e-6


def test_is_deterministic():
    matrices, _ = with_condition(30.0)
    assert torch.equal(polar_rows(matrices).rows, polar_rows(matrices.clone()).rows)


def test_bad_input_is_refused():
    with pytest.raises(GlobeError, match="too few columns"):
        polar_rows(torch.ones(1, 3, 2))
    with pytest.raises(GlobeError, match="NaN"):
        polar_rows(torch.full((1, 2, 2), torch.nan))
