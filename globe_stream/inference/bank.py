"""A bank as a module: codes in, composed matrices out, one product for several experts."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from globe_stream.factorization.model_files import BankSizes
from globe_stream.factorization.packed_factors import Spec, bank_specs, bank_values
from globe_stream.io.dtypes import TORCH_DTYPES
from globe_stream.kernels.activation import blend
from globe_stream.kernels.mixtures import mixtures

_TILE_BYTES = 4 << 20


class Bank(nn.Module):
    """The atoms (m, r, d) of one bank; calling it composes H = phi(Z) of several experts.

    A composition reads support x r x d elements an expert in the atoms' type; see `mixtures`.
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
        phi = self.sizes.phi
        mixed = self._mixed(codes.to(self.stored.device) * phi.gamma)
        return blend(mixed, phi.name, phi.lam)

    def _mixed(self, codes: Tensor) -> Tensor:
        """Z (k, r, d); with gradients the sums and those of the gradients are float32."""
        if torch.is_grad_enabled():
            return mixtures(codes, self.atoms.float()).to(self.atoms.dtype)
        return mixtures(codes, self.atoms.detach())


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

    def _mixed(self, codes: Tensor) -> Tensor:
        """Z (k, r, d) float32; only atoms that are used are made, a tile of rows at a time."""
        sizes = self.sizes
        used = codes.any(0).nonzero()[:, 0]
        step = max(1, _TILE_BYTES // (4 * max(1, len(used)) * sizes.d))
        tiles = []
        for first in range(0, sizes.rank, step):
            rows = slice(first, first + step)
            packed, scales = self.packed[used, rows], self.scales[used, rows]
            tiles.append(mixtures(codes[:, used], bank_values(packed, scales, sizes.d)))
        return torch.cat(tiles, 1)


def empty_parameters(specs: Sequence[Spec]) -> list[nn.Parameter]:
    """Parameters to be filled, of these dtypes and shapes, that are not trained."""
    return [
        nn.Parameter(torch.empty(shape, dtype=TORCH_DTYPES[dtype]), requires_grad=False)
        for _, dtype, shape in specs
    ]
