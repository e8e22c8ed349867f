"""Coarse products against float64, and that they are as coarse as they say."""

import pytest
import torch

from globe_stream.kernels.coarse import coarse_bmm


def factors():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 30, 50, generator=generator), torch.randn(2, 50, 40, generator=generator)


@pytest.mark.parametrize(("precision", "least", "most"), [
    ("float32", 0.0, 1e-6), ("tf32", 0.0, 2e-3), ("bf16", 5e-4, 1e-2),
])  # fmt: skip
def test_errors_are_those_of_the_precision(precision, least, most):
    left, right = factors()
    exact = left.double() @ right.double()
    product = coarse_bmm(left, right, precision)
    assert product.dtype == torch.float32
    assert least <= float((product.double() - exact).norm() / exact.norm()) <= most


def test_the_setting_of_other_products_is_left_alone():
    before = torch.get_float32_matmul_precision()
    coarse_bmm(*factors(), "tf32")
    assert torch.get_float32_matmul_precision() == before
