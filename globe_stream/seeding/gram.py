"""From spilled proxies to the Gram matrix, and from combinations of proxies to atoms.

Both are loops over tiles of rows, so their memory does not depend on how large a proxy is.
Source: docs/design.md, section Gram space.
"""

from pathlib import Path

import torch
from torch import Tensor

from globe_stream.kernels.atoms import squared_norms
from globe_stream.kernels.gram import PANEL_ROWS, accumulate_gram
from globe_stream.store.tiles import Tiles


def proxy_gram(proxies: Tiles, device: torch.device) -> Tensor:
    """C (N, N) float64, unnormalised: inner products of the proxies (N, r, d)."""
    n = proxies.shape[0]
    wide = torch.float64 if device.type != "mps" else torch.float32
    total = torch.zeros(n, n, dtype=wide, device=device)
    for _, tile in proxies:
        accumulate_gram(total, tile.reshape(n, -1).to(device))
    return total.cpu().double()


class ProxyOperator:
    """C v for the unit-norm proxies without ever forming C: two products a tile."""

    def __init__(self, proxies: Tiles, device: torch.device) -> None:
        self._proxies = proxies
        self._device = device
        squares = torch.zeros(proxies.shape[0], dtype=torch.float64)
        for _, tile in proxies:
            panels = [squared_norms(panel.float()) for panel in torch.split(tile, PANEL_ROWS)]
            squares += torch.cat(panels).cpu().double()
        self.norms = squares.sqrt()

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N)."""
        return self._proxies.shape[0], self._proxies.shape[0]

    def matmul(self, vectors: Tensor) -> Tensor:
        """C @ vectors (N, l), float64."""
        scaled = (vectors.double() / self.norms[:, None]).float().to(self._device)
        total = torch.zeros(vectors.shape, dtype=torch.float64)
        for _, tile in self._proxies:
            block = tile.reshape(tile.shape[0], -1).float().to(self._device)
            total += (block @ (block.T @ scaled)).cpu().double()
        return total / self.norms[:, None]


def build_bank(proxies: Tiles, norms: Tensor, combination: Tensor, path: Path) -> Tiles:
    """Atoms B_j = sum_i P_ij x_i, unit-Frobenius, as a spilled (m, r, d) array at `path`.

    `norms` (N,) are the proxies' own; `combination` P (N, m) refers to unit-norm proxies. The
    bank is tiled as the proxies are.
    """
    weights = (combination / norms[:, None]).T.float().to(proxies.device)
    m, (_, r, d) = weights.shape[0], proxies.shape
    bank = Tiles((m, r, d), proxies.tile_shape(0)[1], path=path)
    squares = torch.zeros(m, dtype=torch.float64)
    for tile, (_, rows) in enumerate(proxies):
        atoms = (weights @ rows.reshape(rows.shape[0], -1).float()).view(m, -1, d)
        squares += squared_norms(atoms).cpu().double()
        bank.store(tile, atoms)
    scale = squares.clamp_min(torch.finfo(torch.float64).tiny).rsqrt().float()
    for tile, (_, atoms) in enumerate(bank):
        bank.store(tile, atoms * scale[:, None, None])
    return bank
