"""Blended activations and slopes against autograd."""

import pytest
import torch

from globe_stream.errors import InputError
from globe_stream.kernels.activation import blend, slope_

REFERENCES = {"silu": torch.nn.functional.silu, "tanh": torch.tanh, "none": lambda x: x}


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", list(REFERENCES))
def test_value_and_slope_match_autograd(name, lam):
    torch.manual_seed(1)
    x = (4 * torch.randn(6, 11, dtype=torch.float64)).requires_grad_()
    expected = (1 - lam) * x + lam * REFERENCES[name](x)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    value = blend(x.detach(), name, lam)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(slope_(x.detach().clone(), value, name, lam), slope)


@pytest.mark.parametrize("name", list(REFERENCES))
def test_input_is_left_alone_and_extremes_are_finite(name):
    x = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4])
    before = x.clone()
    value = blend(x, name, 0.7)
    assert torch.equal(x, before)
    slope = slope_(x.clone(), kept := value.clone(), name, 0.7)
    assert torch.equal(kept, value)
    assert bool(torch.isfinite(value).all() and torch.isfinite(slope).all())


@pytest.mark.parametrize("lam", [1e-3, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("name", ["silu", "tanh"])
def test_slope_keeps_its_digits_in_float32_where_the_share_of_the_activation_is_small(name, lam):
    x = torch.linspace(-6, 6, 1001)
    wide = x.double().requires_grad_()
    expected = (1 - lam) * wide + lam * REFERENCES[name](wide)
    (slope,) = torch.autograd.grad(expected.sum(), wide)
    got = slope_(x.clone(), blend(x, name, lam), name, lam)
    assert float((got.double() - slope).abs().max()) < 4e-6


def test_lambda_blends_linearly():
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    half = blend(x, "silu", 0.5)
    torch.testing.assert_close(half, (blend(x, "silu", 0.0) + blend(x, "silu", 1.0)) / 2)


def test_is_deterministic():
    x = torch.randn(1000)
    first, second = blend(x, "silu", 0.4), blend(x, "silu", 0.4)
    assert torch.equal(first, second)
    slopes = [slope_(x.clone(), first, "silu", 0.4) for _ in range(2)]
    assert torch.equal(*slopes)


@pytest.mark.parametrize(("name", "lam"), [("relu", 0.5), ("silu", -0.1), ("silu", 1.1)])
def test_bad_arguments_are_refused(name, lam):
    with pytest.raises(InputError, match="activation"):
        blend(torch.zeros(3), name, lam)
