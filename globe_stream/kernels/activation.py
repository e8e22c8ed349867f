"""The blended activation phi_lambda(x) = (1 - lambda) x + lambda act(x) and its slope."""

import torch
from torch import Tensor

from globe_stream.errors import InputError

ACTIVATIONS = ("silu", "tanh", "none")


def blend(x: Tensor, name: str, lam: float) -> Tensor:
    """Return phi_lambda(x), elementwise.

    Args:
        x: any shape, floating.
        name: "silu", "tanh" or "none" (identity).
        lam: lambda in [0, 1].

    Returns:
        The shape of ``x``; ``x`` itself (not a copy) where the activation is linear.

    Raises:
        InputError: an unknown name, or lambda outside [0, 1].

    Source: docs/design.md, section Problem.
    """
    if _is_linear(name, lam):
        return x
    value = torch.nn.functional.silu(x) if name == "silu" else torch.tanh(x)
    return value if lam == 1.0 else torch.lerp(x, value, lam)


def blend_and_slope(x: Tensor, name: str, lam: float) -> tuple[Tensor, Tensor]:
    """Return phi_lambda(x) and its derivative (1 - lambda) + lambda act'(x).

    Arguments and errors as for :func:`blend`; both results have the shape of ``x``.
    """
    if _is_linear(name, lam):
        return x, torch.ones_like(x)
    if name == "silu":
        gate = torch.sigmoid(x)
        value = x * gate
        slope = gate.add_(value * (1 - gate))
    else:
        value = torch.tanh(x)
        slope = 1 - value.square()
    if lam == 1.0:
        return value, slope
    return torch.lerp(x, value, lam), slope.mul_(lam).add_(1 - lam)


def _is_linear(name: str, lam: float) -> bool:
    if name not in ACTIVATIONS:
        raise InputError(f"activation: {name!r} is unknown; choose one of silu, tanh, none")
    if not 0.0 <= lam <= 1.0:
        raise InputError(f"activation: lambda is {lam}; it must lie between 0 and 1")
    return name == "none" or lam == 0.0
