"""Second pass: a cheap right factor X_i (r, d) of every expert, written row tile by row tile.

Proxies are spilled to a file laid out as tiles of rows, each holding those rows of all
experts, so that the Gram matrix and the atoms need one tile of memory whatever N is.
Source: docs/design.md, section Proxies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.checkpoint.reader import Batch
from globe_stream.config import SeedConfig
from globe_stream.factorization.normalization import Normalization
from globe_stream.factorization.records import PROCRUSTES_MEAN
from globe_stream.io.records import Scalars
from globe_stream.io.world import World
from globe_stream.seeding.procrustes import rotated, top_left
from globe_stream.store import arrays
from globe_stream.store.arrays import Loader
from globe_stream.store.tiles import Tiles

Projector = Callable[[Tensor], Tensor]
"""Normalized weights (b, p, d) to proxies (b, r, d)."""


@dataclass(frozen=True)
class Projection:
    """How proxies are made: by `project`, of the `rows` chosen for all experts or of all rows.

    `agreement` is ||mean||_F of the aligned row spaces, for Procrustes proxies.
    """

    project: Projector
    rows: list[int] | None = None
    agreement: float | None = None


def make_projection(
    kind: str,
    read: Callable[[str], Tensor],
    config: SeedConfig,
    rank: int,
    device: torch.device,
) -> Projection:
    """The projection of `kind` to r = `rank` rows; `read` gives the arrays of the statistics."""
    if kind == "rows":
        rows = select_rows(config.row_selection, read("seed/row_energy"), rank, config.seed)
        return Projection(lambda weights: weights, rows)
    if kind == "left_gram":
        basis = left_basis(read("seed/left_gram"), rank)
        return Projection(left_gram_projector(basis.to(device)))
    if kind == "procrustes":
        mean = read(PROCRUSTES_MEAN).to(device)
        return Projection(procrustes_projector(mean), agreement=float(mean.cpu().double().norm()))
    return Projection(svd_projector(rank))


def select_rows(selection: str, energy: Tensor, rank: int, seed: int) -> list[int]:
    """Indices of `rank` of the p rows, ascending.

    `energy` picks the largest of `energy` (p,), `uniform` a regular stride, `random` without
    replacement from `seed`. Source: docs/design.md, section Proxies.
    """
    p = len(energy)
    if selection == "energy":
        chosen = torch.topk(energy, rank).indices
    elif selection == "uniform":
        chosen = torch.arange(rank) * p // rank
    else:
        chosen = torch.randperm(p, generator=torch.Generator().manual_seed(seed))[:rank]
    return sorted(chosen.tolist())


def left_basis(left_gram: Tensor, rank: int) -> Tensor:
    """A0 (p, r), the top eigenvectors of the left Gram (p, p).

    Source: docs/design.md, section Proxies.
    """
    vectors: Tensor = torch.linalg.eigh(left_gram.double()).eigenvectors
    return vectors[:, -rank:].flip(1).float().contiguous()


def left_gram_projector(basis: Tensor) -> Projector:
    """W (b, p, d) -> A0^T W (b, r, d)."""
    transposed = basis.T.contiguous()
    return lambda weights: torch.matmul(transposed, weights)


def svd_projector(rank: int) -> Projector:
    """W (b, p, d) -> each expert's top-r right singular rows, scaled by singular values.

    With W = U S V^T the rows are U_r^T W = S_r V_r^T; U comes from the eigenvectors of
    W W^T in float64. Source: docs/design.md, section Proxies.
    """

    def project(weights: Tensor) -> Tensor:
        rows = [top_left(matrix, rank).T @ matrix for matrix in weights]
        return torch.stack(rows)

    return project


def procrustes_projector(procrustes_mean: Tensor) -> Projector:
    """W (b, p, d) -> Q W (b, r, d), rotated to lie nearest to the Procrustes mean (r, d)."""
    return lambda weights: rotated(weights, procrustes_mean)


class ProxyAccumulator:
    """Writes the proxies of every batch into `tiles` (n, r, d), of the n experts at `positions`.

    `positions` ascend; without them they are those of all experts.
    """

    def __init__(
        self,
        tiles: Tiles,
        projector: Projector,
        normalization: Normalization,
        positions: Sequence[int] | None = None,
    ) -> None:
        self.energy = 0.0  # sum of ||X_i||^2
        self._tiles = tiles
        chosen = range(tiles.shape[0]) if positions is None else positions
        self._place = {position: k for k, position in enumerate(chosen)}
        self._projector = projector
        self._normalization = normalization

    def update(self, batch: Batch) -> str:
        exact = self._projector(self._normalization.apply_(batch.weights))
        rows = torch.linalg.vector_norm(exact, dim=2).cpu().double()
        self.energy += float(rows.square().sum())
        proxies = exact.to(self._tiles.dtype)
        places = [self._place[position] for position in batch.positions]
        for tile, (start, stop) in enumerate(self._tiles.bounds):
            for first, last in _runs(places):
                rows = proxies[first:last, start:stop]
                self._tiles.write_items(places[first], rows, tile)
        return ""

    def arrays(self) -> Mapping[str, arrays.Storable]:
        self._tiles.sync()
        return {}

    def scalars(self) -> Scalars:
        return {"energy": self.energy}

    def reduce(self, world: World, positions: Sequence[int]) -> None:
        del positions
        self.energy = sum(world.gather(self.energy))

    def restore(self, load: Loader, scalars: Scalars) -> None:
        del load
        self.energy = scalars["energy"]


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open index ranges of `positions` in which they count up one by one."""
    starts = [k for k in range(len(positions)) if k == 0 or positions[k] != positions[k - 1] + 1]
    return list(zip(starts, [*starts[1:], len(positions)], strict=True))
