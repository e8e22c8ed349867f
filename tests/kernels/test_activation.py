"""Blended activations and slopes against autograd."""

import pytest
import torch

from globe_stream.errors import InputError
from globe_stream.kernels.activation import blend, blend_and_slope

REFERENCES = {"silu": torch.nn.functional.silu, "tanh": torch.tanh, "none": lambda x: x}


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", list(REFERENCES))
def test_value_and_slope_match_autograd(name, lam):
    torch.manual_seed(1)
    x = (4 * torch.randn(6, 11, dtype=torch.float64)).requires_grad_()
    expected = (1 - lam) * x + lam * REFERENCES[name](x)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    value, got = blend_and_slope(x.detach(), name, lam)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(got, slope)
    torch.testing.assert_close(blend(x.detach(), name, lam), expected.detach())


@pytest.mark.parametrize("name", list(REFERENCES))
def test_input_is_left_alone_and_extremes_are_finite(name):
    x = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4])
    before = x.clone()
    value, slope = blend_and_slope(x, name, 0.7)
    assert torch.equal(x, before)
    assert bool(torch.isfinite(value).all() and torch.isfinite(slope).all())


def test_lambda_blends_linearly():
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    half = blend(x, "silu", 0.5)
    torch.testing.assert_close(half, (blend(x, "silu", 0.0) + blend(x, "silu", 1.0)) / 2)


def test_is_deterministic():
    x = torch.randn(1000)
    first, second = blend_and_slope(x, "silu", 0.4), blend_and_slope(x, "silu", 0.4)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(("name", "lam"), [("relu", 0.5), ("silu", -0.1), ("silu", 1.1)])
def test_bad_arguments_are_refused(name, lam):
    with pytest.raises(InputError, match="activation"):
        blend(torch.zeros(3), name, lam)
