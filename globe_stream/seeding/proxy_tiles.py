"""The spilled proxies of all experts, of which every process keeps those that it made.

What needs the same rows of all experts (the Gram matrix, the atoms) takes tiles of rows in rounds:
in each, every process is given one tile whole, from the parts that all of them hold.
Source: docs/design.md, sections Gram space and Several processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.io.world import ALONE, World
from globe_stream.store.tiles import Tiles


@dataclass(frozen=True)
class Round:
    """Tile numbers[k] goes to process k; `tile` (N, rows, d) is this one's, if there is one left.

    A buffer of `tile` is overwritten in the next round.
    """

    numbers: range
    tile: Tensor | None


class ProxyTiles:
    """Proxies (N, r, d): `own` (n, r, d) holds those of shares[rank], positions ascending."""

    def __init__(
        self, own: Tiles, shares: Sequence[Sequence[int]] | None = None, world: World = ALONE
    ) -> None:
        self.own = own
        self.world = world
        self._shares = [range(own.shape[0])] if shares is None else [sorted(s) for s in shares]
        _, r, d = own.shape
        self.shape = (sum(map(len, self._shares)), r, d)

    @property
    def positions(self) -> Sequence[int]:
        """The experts whose proxies this process holds, ascending."""
        return self._shares[self.world.rank]

    def rounds(self) -> Iterator[Round]:
        """Every tile of all proxies once, one for each process at a time."""
        for start in range(0, len(self.own), self.world.size):
            numbers = range(start, min(start + self.world.size, len(self.own)))
            if self.world.size == 1:
                yield Round(numbers, self.own.load(start))
            else:
                yield Round(numbers, self._whole(numbers))

    def close(self) -> None:
        """Close the file of the own proxies."""
        self.own.close()

    def _whole(self, numbers: range) -> Tensor | None:
        """The tile numbers[rank] of all proxies, gathered from every process."""
        rank, (n, _, d) = self.world.rank, self.shape
        parts = [self.own.load(number).reshape(-1).clone() for number in numbers]
        counts = [len(part) for part in parts] + [0] * (self.world.size - len(parts))
        rows = self.own.tile_shape(numbers[rank])[1] if rank < len(numbers) else 0
        shapes = [(len(share), rows, d) for share in self._shares]
        received = self.world.exchange(torch.cat(parts), counts, shapes)
        if not rows:
            return None
        whole = received[0].new_empty(n, rows, d)
        for share, part in zip(self._shares, received, strict=True):
            whole[list(share)] = part
        return whole
