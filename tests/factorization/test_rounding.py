"""Rounding with error feedback against rounding every entry to the nearest value."""

import pytest
import torch

from globe_stream.factorization.rounding import round_columns


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
