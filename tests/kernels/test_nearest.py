"""Round to nearest against its definition in float64, value by value."""

import numpy as np
import pytest
import torch

from globe_stream.kernels.nearest import group_of, round_to_nearest, rounded_bits


def _by_hand(row: np.ndarray, bits: int) -> np.ndarray:
    """One group: the nearest of 2^b equally spaced values from the least to the largest."""
    least = float(torch.tensor(row.min()).bfloat16())
    step = float(torch.tensor((row.max() - np.float32(least)) / (2**bits - 1)).bfloat16())
    values = least + step * np.arange(2**bits)
    return values[np.abs(row[:, None] - values).argmin(1)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("columns", [64, 100, 20])
def test_equals_the_nearest_of_the_levels(bits: int, columns: int) -> None:
    values = torch.randn(5, columns, generator=torch.Generator().manual_seed(bits + columns))
    found = round_to_nearest(values, bits).numpy()
    group = group_of(bits)
    for row, rounded in zip(values.numpy(), found, strict=True):
        for start in range(0, columns, group):
            part = slice(start, start + group)
            np.testing.assert_allclose(rounded[part], _by_hand(row[part], bits), atol=1e-5)


def test_constant_groups_and_bits() -> None:
    assert torch.equal(round_to_nearest(torch.full((2, 70), 0.5), 4), torch.full((2, 70), 0.5))
    assert rounded_bits(3, 64, 4) == 3 * (64 * 4 + 32)
    assert rounded_bits(3, 65, 4) == 3 * (65 * 4 + 64)
    assert rounded_bits(1, 64, 2) == 64 * 2 + 2 * 32
