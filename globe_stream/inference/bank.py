"""A bank as a module: codes in, composed matrices out, one product for several experts."""

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from globe_stream.factorization.model_files import BankSizes

_TILE_BYTES = 4 << 20


class Bank(nn.Module):
    """The atoms (m, r, d) of one bank; calling it composes H = phi(Z) of several experts.

    Rows of the atoms are taken a tile at a time and multiplied in float32, so whatever the type of
    the atoms, a composition reads each of them once for all experts together.
    """

    def __init__(self, sizes: BankSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.atoms = nn.Parameter(torch.empty(sizes.bases, sizes.rank, sizes.d))

    @property
    def version(self) -> Hashable:
        """Changes when the atoms are changed in place."""
        return self.atoms._version

    @property
    def trains(self) -> bool:
        """Whether a gradient is asked for."""
        return self.atoms.requires_grad

    def forward(self, codes: Tensor) -> Tensor:
        """H (k, r, d) in the atoms' type from dense float32 codes (k, m) of k experts."""
        codes = codes.to(self.atoms.device)
        used = codes.detach().any(0).nonzero()[:, 0]
        few = 2 * len(used) <= len(self.atoms)
        chosen = codes[:, used] if few else codes
        step = max(1, _TILE_BYTES // (4 * chosen.shape[1] * self.sizes.d + 1))
        parts = []
        for start in range(0, self.sizes.rank, step):
            tile = self.atoms[:, start : start + step]
            tile = (tile[used] if few else tile).float()
            mixed = (chosen @ tile.flatten(1)).view(-1, *tile.shape[1:])
            parts.append(self.sizes.activation.apply(mixed).to(self.atoms.dtype))
        return torch.cat(parts, 1)
