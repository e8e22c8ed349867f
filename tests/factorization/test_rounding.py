"""Rounding with error feedback against rounding every entry to the nearest value."""

import pytest
import torch

from globe_stream.factorization.rounding import quantize_columns, round_columns
from globe_stream.kernels.quantize import dequantize, group_columns, quantize


def case(n, k, length, seed=0):
    """X (n, k) and Y (k, length) whose rows are nearly dependent."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(1, length, generator=generator)
    rows = common + 0.1 * torch.randn(k, length, generator=generator)
    return torch.randn(n, k, generator=generator), rows


def distance(matrix, rounded, rows):
    return float(((matrix - rounded.float()) @ rows).norm() / (matrix @ rows).norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [8, 64, 150])
def test_products_are_closer_than_those_of_the_nearest_values(dtype, k):
    matrix, rows = case(20, k, 400)
    rounded = round_columns(matrix, rows @ rows.T, dtype)
    assert rounded.dtype == dtype
    nearest = matrix.to(dtype)
    assert distance(matrix, rounded, rows) < 0.6 * distance(matrix, nearest, rows)
    alone = torch.eye(k)
    assert distance(matrix, rounded, alone) < 4 * distance(matrix, nearest, alone)


def test_independent_columns_are_rounded_to_the_nearest_value():
    matrix, _ = case(10, 6, 20)
    gram = torch.diag(torch.arange(1.0, 7.0))
    assert torch.equal(round_columns(matrix, gram, torch.bfloat16), matrix.bfloat16())


def test_the_same_dtype_is_left_alone_and_rounding_is_deterministic():
    matrix, rows = case(4, 5, 20)
    assert round_columns(matrix, rows @ rows.T, torch.float32) is matrix
    first, second = (round_columns(matrix, rows @ rows.T, torch.bfloat16) for _ in range(2))
    assert torch.equal(first, second)


def test_a_singular_gram_matrix_and_one_of_zeros_do_no_harm():
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    for gram in (torch.ones(6, 6), torch.zeros(6, 6)):
        rounded = round_columns(matrix, gram, torch.bfloat16).float()
        assert bool(torch.isfinite(rounded).all())
        assert float((rounded - matrix).abs().max()) < 0.2


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("k", [40, 150])
def test_coded_columns_make_up_for_errors_of_those_before(bits, k):
    matrix, rows = (one.double() for one in case(20, k, 400))
    found = dequantize(*quantize_columns(matrix, rows @ rows.T, bits), bits)
    nearest = dequantize(*quantize(matrix.float(), bits), bits)
    assert distance(matrix, found, rows) < 0.8 * distance(matrix, nearest, rows)
    alone = torch.eye(k).double()
    assert distance(matrix, found, alone) < 3 * distance(matrix, nearest, alone)


@pytest.mark.parametrize("k", [40, 150])
def test_without_correlations_little_is_lost_by_choosing_few_numbers_at_a_time(k):
    matrix, alone = case(20, k, 400)[0].double(), torch.eye(k).double()
    found = dequantize(*quantize_columns(matrix, alone, 3), 3)
    nearest = dequantize(*quantize(matrix.float(), 3), 3)
    assert distance(matrix, found, alone) < 1.1 * distance(matrix, nearest, alone)


def test_scales_are_the_best_for_the_numbers():
    """Oracle: least squares of one row over the values of its two groups."""
    matrix, rows = (one.double() for one in case(3, 150, 400))
    numbers, scales = quantize_columns(matrix, rows @ rows.T, 3)
    ones = torch.ones(3, 2).bfloat16()
    values = dequantize(numbers, ones, 3).double()
    for row in range(3):
        parts = [(values[row, group] @ rows[group]) for group in group_columns(150)]
        found = torch.linalg.lstsq(torch.stack(parts, 1), matrix[row] @ rows).solution
        torch.testing.assert_close(scales[row].double(), found, rtol=5e-3, atol=1e-3)


def test_fine_levels_are_rounded_to_the_nearest_and_codes_are_deterministic():
    matrix, rows = (one.double() for one in case(4, 30, 60))
    gram = rows @ rows.T
    for found, expected in zip(
        quantize_columns(matrix, gram, 6), quantize(matrix.float(), 6), strict=True
    ):
        assert torch.equal(found, expected)
    first, second = (quantize_columns(matrix, gram, 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    zeros = dequantize(*quantize_columns(torch.zeros(2, 30).double(), gram, 3), 3)
    assert not zeros.any()
