"""From spilled proxies to the Gram matrix, and from combinations of proxies to atoms.

Both are loops over tiles of rows, so their memory does not depend on how large a proxy is.
Source: docs/design.md, section Gram space.
"""

from pathlib import Path

import torch
from torch import Tensor

from globe_stream.kernels.atoms import squared_norms
from globe_stream.kernels.double import double_device
from globe_stream.kernels.gram import PANEL_ROWS, accumulate_gram
from globe_stream.kernels.reductions import product
from globe_stream.seeding.proxy_tiles import ProxyTiles
from globe_stream.store.tiles import Tiles


def proxy_gram(proxies: ProxyTiles, device: torch.device) -> Tensor:
    """C (N, N) float64, unnormalised: inner products of the proxies (N, r, d).

    Every process takes some tiles of rows; their sums are added up.
    """
    n = proxies.shape[0]
    total = torch.zeros(n, n, dtype=torch.float64, device=double_device(device))
    for part in proxies.rounds():
        if part.tile is not None:
            accumulate_gram(total, part.tile.reshape(n, -1).to(device))
    proxies.world.add_(total)
    return total.cpu()


class ProxyOperator:
    """C v for the unit-norm proxies without ever forming C: two products a tile."""

    def __init__(self, proxies: ProxyTiles, device: torch.device) -> None:
        self._proxies = proxies
        self._device = device
        self._own = torch.tensor(proxies.positions)
        squares = torch.zeros(proxies.shape[0], dtype=torch.float64)
        for _, tile in proxies.own:
            panels = [squared_norms(panel.float()) for panel in torch.split(tile, PANEL_ROWS)]
            squares[self._own] += torch.cat(panels).cpu().double()
        proxies.world.fill_(squares, proxies.positions)
        self.norms = squares.sqrt()

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N)."""
        return self._proxies.shape[0], self._proxies.shape[0]

    def matmul(self, vectors: Tensor) -> Tensor:
        """C @ vectors (N, l), float64."""
        own = vectors[self._own].double() / self.norms[self._own, None]
        scaled = own.float().to(self._device)
        total = torch.zeros(vectors.shape, dtype=torch.float64)
        for _, tile in self._proxies.own:
            block = tile.reshape(tile.shape[0], -1).float().to(self._device)
            mixed = product(block.T, scaled.T)
            self._proxies.world.add_(mixed)
            total[self._own] += product(block, mixed.T).cpu().double()
        self._proxies.world.fill_(total, self._proxies.positions)
        return total / self.norms[:, None]


def build_bank(proxies: ProxyTiles, norms: Tensor, combination: Tensor, path: Path) -> Tiles:
    """Atoms B_j = sum_i P_ij x_i, unit-Frobenius, as a spilled (m, r, d) array at `path`.

    `norms` (N,) are the proxies' own; `combination` P (N, m) refers to unit-norm proxies. The
    bank is tiled as the proxies are; every process makes some tiles and has all of them.
    """
    own, world = proxies.own, proxies.world
    weights = (combination / norms[:, None]).T.float().to(own.device)
    m, (n, r, d) = weights.shape[0], proxies.shape
    bank = Tiles((m, r, d), own.tile_shape(0)[1], path=path)
    squares = torch.zeros(m, dtype=torch.float64)
    for part in proxies.rounds():
        made = None if part.tile is None else product(weights, part.tile.reshape(n, -1).float().T)
        for rank, tile in enumerate(part.numbers):
            shape = bank.tile_shape(tile)
            atoms = weights.new_empty(shape)
            if made is not None and rank == world.rank:
                atoms = made.view(shape)
            world.broadcast_(atoms, rank)
            squares += squared_norms(atoms).cpu().double()
            bank.store(tile, atoms)
    scale = squares.clamp_min(torch.finfo(torch.float64).tiny).rsqrt().float()
    for tile, (_, atoms) in enumerate(bank):
        bank.store(tile, atoms * scale[:, None, None])
    return bank
