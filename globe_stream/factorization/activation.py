"""The activation phi that is applied to a mixture of atoms, with its gain.

Source: docs/design.md, section Problem.
"""

from dataclasses import dataclass

from torch import Tensor

from globe_stream.kernels.activation import blend, slope_


@dataclass(frozen=True)
class Activation:
    """phi(x) = (1 - lam) g x + lam act(g x) with g = `gamma`; act is silu, tanh or none."""

    name: str = "none"
    lam: float = 0.0
    gamma: float = 1.0

    @property
    def linear(self) -> bool:
        """Whether phi is multiplication by `gamma`."""
        return self.name == "none" or self.lam == 0.0

    def apply(self, mixtures: Tensor) -> Tensor:
        """H = phi(Z), elementwise and of the shape of Z."""
        scaled = mixtures * self.gamma
        return scaled if self.linear else blend(scaled, self.name, self.lam)

    def slope_(self, mixtures: Tensor, hidden: Tensor) -> Tensor:
        """The derivative of phi over g at Z, from H = `hidden` = phi(Z); overwrites Z."""
        return slope_(mixtures.mul_(self.gamma), hidden, self.name, self.lam)
