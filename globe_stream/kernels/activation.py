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


def slope_(x: Tensor, value: Tensor, name: str, lam: float) -> Tensor:
    """Return phi_lambda'(x) = (1 - lambda) + lambda act'(x), written over ``x``.

    Args:
        x: any shape, floating.
        value: ``blend(x, name, lam)``, which spares computing act anew; not changed.
        name, lam: as for :func:`blend`.

    Errors as for :func:`blend`. Memory: for silu two more arrays like ``x``.
    """
    if _is_linear(name, lam):
        return x.fill_(1.0)
    gate = torch.sigmoid(x) if name == "silu" else None
    share = torch.add(value, x, alpha=lam - 1, out=x)  # lambda act(x)
    if gate is None:
        return torch.addcmul(x.new_ones(()), share, share, value=-1 / lam, out=share)
    return share.add_(gate.mul_(lam - share)).add_(1 - lam)


def _is_linear(name: str, lam: float) -> bool:
    if name not in ACTIVATIONS:
        raise InputError(f"activation: {name!r} is unknown; choose one of silu, tanh, none")
    if not 0.0 <= lam <= 1.0:
        raise InputError(f"activation: lambda is {lam}; it must lie between 0 and 1")
    return name == "none" or lam == 0.0
