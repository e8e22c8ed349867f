"""The shared metric in which one epoch measures displacements of the mixtures.

`left` M (r, r) is the mean of gamma^2 A_i^T A_i: how strongly errors are seen through the
adapters. `right` C (d, d) is the mean of I - P_i, P_i projecting on the rows of H_i: with
adapters refitted, the loss feels a change of H_i only outside its own row space (Kaufman's form of
variable projection). Both are moving means over the epochs before, a few experts of each; `right`
may be absent (identity).
Source: docs/design.md, section Metric; Golub and Pereyra, "Separable nonlinear least squares"
(2003).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.io.world import ALONE, Bounds, World, even_parts
from globe_stream.kernels.reductions import pieces
from globe_stream.memory.cost_model import ATOM_CHUNK_BYTES
from globe_stream.store.tiles import Tiles

RIGHT_RIDGE = 0.05
"""Share of its mean diagonal that is added to C: directions inside every row space still move."""
_LEFT_RIDGE = 1e-6
_NEWEST_SHARE = 0.25
"""Weight of an epoch's experts in the moving means of the metric; those before share the rest."""


@dataclass(frozen=True)
class Metric:
    """The metric and its inverses; None stands for the identity."""

    left: Tensor
    left_inverse: Tensor
    right: Tensor | None
    right_inverse: Tensor | None

    @classmethod
    def identity(cls, rank: int, device: torch.device) -> "Metric":
        """No preference among displacements."""
        eye = torch.eye(rank, device=device)
        return cls(eye, eye, None, None)

    @classmethod
    def from_moments(
        cls, adapter_moment: Tensor, row_projector: Tensor, device: torch.device
    ) -> "Metric":
        """From the mean of gamma^2 A^T A (r, r) and the mean complement I - P (d, d)."""
        left = _ridged(adapter_moment.cpu().double(), _LEFT_RIDGE)
        right = _ridged(row_projector.cpu().double(), RIGHT_RIDGE)
        right = right / right.diagonal().mean()
        parts = (left, _inverse(left), right, _inverse(right))
        return cls(*(part.float().to(device) for part in parts))

    def apply(self, atoms: Tensor) -> Tensor:
        """M X C of atoms X (k, r, d): from displacement to gradient."""
        product = torch.matmul(self.left, atoms)
        return product if self.right is None else torch.matmul(product, self.right)

    def solve(self, gradients: Tensor) -> Tensor:
        """M^-1 F C^-1 of gradients F (k, r, d): from gradient to displacement."""
        if self.right_inverse is None:
            return torch.matmul(self.left_inverse, gradients)
        return torch.matmul(torch.matmul(self.left_inverse, gradients), self.right_inverse)

    def probes(self, count: int) -> Tensor:
        """P (r, k) with E[P P^T] = M^-1, k = `count` but at most r, where P P^T = M^-1.

        ||A P||^2 estimates tr(M^-1 A^T A) for any A (p, r) within a few percent: P is a root of
        M^-1 times random signs, always the same ones.
        Source: Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1990).
        """
        probes: Tensor = torch.linalg.cholesky(self.left_inverse.cpu().double())
        if count < len(probes):
            generator = torch.Generator().manual_seed(0)
            signs = torch.randint(2, (len(probes), count), generator=generator).double()
            probes = probes @ (2 * signs - 1) / count**0.5
        return probes.float().to(self.left_inverse.device)

    @property
    def condition(self) -> float:
        """Condition number of M."""
        values = torch.linalg.eigvalsh(self.left.cpu().double())
        return float(values[-1] / values[0])


def moving_mean(before: Tensor | None, newest: Tensor) -> Tensor:
    """The mean that the metric is made of, after an epoch whose experts have the mean `newest`.

    `before` is None at the first epoch.
    """
    return newest if before is None else before.to(newest).lerp(newest, _NEWEST_SHARE)


def atom_chunks(bank: Tiles, bounds: Bounds, nbytes: int = ATOM_CHUNK_BYTES) -> list[Bounds]:
    """Ranges of the atoms in `bounds` that are handled together when all rows are needed."""
    _, r, d = bank.shape
    first, last = bounds
    size = max(1, nbytes // (4 * r * d))
    return [(start, min(start + size, last)) for start in range(first, last, size)]


def plain_gram(bank: Tiles) -> Tensor:
    """K (m, m) float64 = <B_j, B_k>."""
    gram = torch.zeros(bank.shape[0], bank.shape[0], dtype=torch.float64)
    for _, tile in bank:
        flat = tile.reshape(len(tile), -1)
        for part in pieces(flat.shape[1], flat.device):
            gram += (flat[:, part] @ flat[:, part].T).cpu().double()
    return gram


def metric_gram(
    bank: Tiles, metric: Metric, world: World = ALONE, nbytes: int = ATOM_CHUNK_BYTES
) -> Tensor:
    """K (m, m) float64 = <B_j, M B_k C>; every process computes the columns of its atoms.

    The bank is read once for every `nbytes` of atoms, which are held three times.
    """
    m = bank.shape[0]
    gram = torch.zeros(m, m, dtype=torch.float64)
    for first, last in atom_chunks(bank, even_parts(m, world.size)[world.rank], nbytes):
        applied = metric.apply(bank.items(first, last))
        for (start, stop), tile in bank:
            flat, other = tile.reshape(m, -1), applied[:, start:stop].reshape(last - first, -1)
            for part in pieces(flat.shape[1], flat.device):
                gram[:, first:last] += (flat[:, part] @ other[:, part].T).cpu().double()
    world.add_(gram)
    return (gram + gram.T) / 2


def precondition(gradients: Tiles, metric: Metric, world: World = ALONE) -> None:
    """Replace every F_j by M^-1 F_j C^-1, F_j the sum of what all processes have, in place.

    Every process sums and solves for its own atoms and gives them to the others.
    """
    bounds = even_parts(gradients.shape[0], world.size)
    _each_tile(gradients, bounds, world, world.reduce_parts_)
    for first, last in atom_chunks(gradients, bounds[world.rank]):
        gradients.put_items(first, metric.solve(gradients.items(first, last)))
    _each_tile(gradients, bounds, world, world.share_parts_)


def _each_tile(
    tiles: Tiles,
    bounds: Sequence[Bounds],
    world: World,
    exchange: Callable[[Tensor, Sequence[Bounds]], None],
) -> None:
    """Apply `exchange` with the `bounds` of atoms to every tile, if there are other processes."""
    if world.size == 1:
        return
    for tile, (_, values) in enumerate(tiles):
        exchange(values, bounds)
        tiles.store(tile, values)


def _ridged(matrix: Tensor, share: float) -> Tensor:
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    return (matrix + matrix.T) / 2 + share * matrix.diagonal().mean() * eye


def _inverse(matrix: Tensor) -> Tensor:
    inverse: Tensor = torch.linalg.inv(matrix)
    return (inverse + inverse.T) / 2
