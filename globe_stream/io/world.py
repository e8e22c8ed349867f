"""The processes that compute one run together: one, or those that `torchrun` started.

Every process carries out the same statements in the same order and calls the same methods of its
`World`; a world of one communicates nothing. Sums are taken in the order of the ranks, so the same
number of processes gives the same bytes whatever the transport does.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from globe_stream.errors import GlobeError

PIECE_BYTES = 32 << 20
"""Tensors are summed in pieces of this size, and a piece is all that a sum holds besides."""

T = TypeVar("T")
Bounds = tuple[int, int]


class PeerLost(GlobeError):
    """Another process of this world ended, or did not answer in time (exit code 1)."""


def even_parts(count: int, size: int) -> list[Bounds]:
    """`size` half-open ranges that cut `count` as evenly as possible, in order."""
    edges = [k * count // size for k in range(size + 1)]
    return list(pairwise(edges))


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`, of which `local_size` share this machine's memory."""

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes the run and prints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """`value` of every process, by rank; small objects that can be pickled."""
        if self.size == 1:
            return [value]
        found: list[T | None] = [None] * self.size
        with _answering():
            dist.all_gather_object(found, value)
        return found  # type: ignore[return-value]

    def of_first(self, value: T) -> T:
        """What the leading process gave as `value`."""
        return self.gather(value if self.leads else None)[0]  # type: ignore[return-value]

    def meet(self) -> None:
        """Return once every process is here."""
        self.totals([0])

    def totals(self, counts: Sequence[int]) -> list[int]:
        """The sum over all processes of each of `counts`."""
        if self.size == 1:
            return list(counts)
        values = torch.tensor(counts, dtype=torch.int64)
        with _answering():
            dist.all_reduce(values)
        return [int(value) for value in values.tolist()]

    def broadcast_(self, values: Tensor, source: int = 0) -> None:
        """Replace contiguous `values` by those of process `source`."""
        if self.size > 1 and values.numel():
            with _answering():
                dist.broadcast(values, src=source)

    def add_(self, values: Tensor) -> None:
        """Replace contiguous `values` by their sum over all processes, in the order of ranks."""
        if self.size == 1:
            return
        for piece in torch.split(values.view(-1), max(1, PIECE_BYTES // values.itemsize)):
            bounds = even_parts(len(piece), self.size)
            self.reduce_parts_(piece, bounds)
            self.share_parts_(piece, bounds)

    def reduce_parts_(self, values: Tensor, bounds: Sequence[Bounds]) -> None:
        """Sum contiguous `values` over all processes, each only its own of the ranges `bounds`.

        Afterwards values[first:last] holds the sum for (first, last) = bounds[rank] of the first
        axis; what the rest holds is not defined. Memory: `values` once more at the most.
        """
        if self.size == 1:
            return
        first, last = bounds[self.rank]
        each = values.numel() // max(1, len(values))
        counts = [(stop - start) * each for start, stop in bounds]
        shapes = [values[first:last].shape] * self.size
        parts = self.exchange(values, counts, shapes)
        total = values[first:last]
        total.copy_(parts[0])
        for part in parts[1:]:
            total += part

    def share_parts_(self, values: Tensor, bounds: Sequence[Bounds]) -> None:
        """Give every process all of contiguous `values`, of which rank k has bounds[k]."""
        for rank, (first, last) in enumerate(bounds):
            self.broadcast_(values[first:last], rank)

    def exchange(
        self, values: Tensor, counts: Sequence[int], shapes: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Send the first counts[0] elements of contiguous `values` to process 0, and so on.

        Returns what every process sent here, of these `shapes`. Memory: what is received.
        """
        size = values.itemsize
        lengths = [torch.Size(shape).numel() for shape in shapes]
        if self.size == 1:
            return [values.view(*shapes[0])]
        received = values.new_empty(sum(lengths))
        with _answering():
            dist.all_to_all_single(
                received.view(torch.uint8),
                values.view(-1).view(torch.uint8),
                [size * length for length in lengths],
                [size * count for count in counts],
            )
        parts = torch.split(received, lengths)
        return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]

    def fill_(self, values: Tensor, positions: Sequence[int]) -> None:
        """Complete `values` (N, ...), of which this process has the rows at `positions`."""
        if self.size == 1:
            return
        others = torch.ones(len(values), dtype=torch.bool)
        others[list(positions)] = False
        values[others] = 0
        self.add_(values)


ALONE = World()
"""One process without others."""


@contextmanager
def _answering() -> Iterator[None]:
    """Turn the failure of a collective into PeerLost."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(
            "another process of this job ended or did not answer. "
            "The same command continues where it stopped"
        ) from error
