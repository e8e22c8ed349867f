"""A bank as a module: codes in, composed matrices out, one product for several experts."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from globe_stream.factorization.model_files import BankSizes
from globe_stream.factorization.packed_factors import Spec, bank_specs, bank_values
from globe_stream.io.dtypes import TORCH_DTYPES

_TILE_BYTES = 4 << 20


class Bank(nn.Module):
    """The atoms (m, r, d) of one bank; calling it composes H = phi(Z) of several experts.

    Rows of the atoms are taken a tile at a time and multiplied in float32, so whatever the type of
    the atoms, a composition reads each of them once for all experts together.
    """

    def __init__(self, sizes: BankSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self._register()

    def _register(self) -> None:
        sizes = self.sizes
        self.atoms = nn.Parameter(torch.empty(sizes.bases, sizes.rank, sizes.d))

    @property
    def stored(self) -> nn.Parameter:
        """The parameter that holds the atoms."""
        return self.atoms

    @property
    def itemsize(self) -> int:
        """Bytes of an element of a composed matrix."""
        return self.atoms.itemsize

    @property
    def version(self) -> Hashable:
        """Changes when the atoms are changed in place."""
        return self.stored._version

    @property
    def trains(self) -> bool:
        """Whether a gradient is asked for."""
        return self.stored.requires_grad

    def forward(self, codes: Tensor) -> Tensor:
        """H (k, r, d) in the atoms' type from dense float32 codes (k, m) of k experts."""
        codes = codes.to(self.stored.device)
        used = codes.detach().any(0).nonzero()[:, 0]
        few = 2 * len(used) <= self.sizes.bases
        chosen = codes[:, used] if few else codes
        step = max(1, _TILE_BYTES // (4 * chosen.shape[1] * self.sizes.d + 1))
        parts = []
        for start in range(0, self.sizes.rank, step):
            tile = self._rows(slice(start, start + step), used if few else slice(None))
            mixed = (chosen @ tile.flatten(1)).view(-1, *tile.shape[1:])
            parts.append(self._finished(self.sizes.phi.apply(mixed)))
        return torch.cat(parts, 1)

    def _rows(self, rows: slice, chosen: Tensor | slice) -> Tensor:
        """Rows (m', t, d) float32 of the chosen atoms."""
        return self.atoms[:, rows][chosen].float()

    def _finished(self, hidden: Tensor) -> Tensor:
        return hidden.to(self.atoms.dtype)


class PackedBank(Bank):
    """A bank in few bits an element; what it composes is float32. It is not trained."""

    def _register(self) -> None:
        sizes = self.sizes
        assert sizes.bits is not None
        shape = (sizes.bases, sizes.rank, sizes.d)
        self.scales, self.packed = empty_parameters(bank_specs("", shape, sizes.bits[0]))
        self._itemsize = torch.get_default_dtype().itemsize

    @property
    def stored(self) -> nn.Parameter:
        """The parameter that holds the bits."""
        return self.packed

    @property
    def itemsize(self) -> int:
        """Bytes of an element of a composed matrix: those of the type the model was made with."""
        return self._itemsize

    @property
    def trains(self) -> bool:
        """Never."""
        return False

    def _rows(self, rows: slice, chosen: Tensor | slice) -> Tensor:
        return bank_values(self.packed[:, rows][chosen], self.scales[:, rows][chosen], self.sizes.d)

    def _finished(self, hidden: Tensor) -> Tensor:
        return hidden


def empty_parameters(specs: Sequence[Spec]) -> list[nn.Parameter]:
    """Parameters to be filled, of these dtypes and shapes, that are not trained."""
    return [
        nn.Parameter(torch.empty(shape, dtype=TORCH_DTYPES[dtype]), requires_grad=False)
        for _, dtype, shape in specs
    ]
