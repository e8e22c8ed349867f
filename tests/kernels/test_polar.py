"""Nearly orthonormal rows against the SVD."""

import pytest
import torch

from globe_stream.errors import GlobeError
from globe_stream.kernels.polar import nearly_orthonormal_rows


def with_condition(condition, b=3, r=20, k=33, dtype=torch.float64):
    """Matrices with singular values from 5 down to 5 / condition, and their polar factors."""
    generator = torch.Generator().manual_seed(7)
    left, _, right = torch.linalg.svd(
        torch.randn(b, r, k, generator=generator, dtype=torch.float64), full_matrices=False
    )
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), r).double()
    return (5.0 * left * values @ right).to(dtype), left @ right


@pytest.mark.parametrize("condition", [1.0, 10.0])
def test_singular_values_end_near_one_and_vectors_stay(condition):
    matrices, expected = with_condition(condition)
    rows = nearly_orthonormal_rows(matrices)
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    torch.testing.assert_close(left @ right, expected, atol=1e-8, rtol=0)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.2


def test_float32():
    matrices, _ = with_condition(10.0, r=300, k=320, dtype=torch.float32)
    rows = nearly_orthonormal_rows(matrices)
    exact = nearly_orthonormal_rows(matrices.double())
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.double(), exact, atol=1e-4, rtol=0)


def test_small_singular_values_grow_but_stay_below_the_others():
    matrices, _ = with_condition(1e4)
    values = torch.linalg.svdvals(nearly_orthonormal_rows(matrices))
    assert float(values.max()) < 1.2
    assert float(values.min() / values.max()) > 10 * 1e-4


def test_scale_does_not_matter_and_zeros_give_unit_vectors():
    matrices, _ = with_condition(10.0, dtype=torch.float32)
    expected = nearly_orthonormal_rows(matrices)
    for scale in (1e-12, 1e12):
        rows = nearly_orthonormal_rows(matrices * scale)
        torch.testing.assert_close(rows, expected, atol=1e-4, rtol=0)
    assert torch.equal(nearly_orthonormal_rows(torch.zeros(1, 2, 3))[0], torch.eye(2, 3))


def test_is_deterministic():
    matrices, _ = with_condition(30.0)
    assert torch.equal(nearly_orthonormal_rows(matrices), nearly_orthonormal_rows(matrices.clone()))


def test_more_rows_than_columns_are_refused():
    with pytest.raises(GlobeError, match="too few columns"):
        nearly_orthonormal_rows(torch.ones(1, 3, 2))
