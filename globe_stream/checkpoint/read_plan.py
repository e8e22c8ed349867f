"""Which bytes of a file to read for an expert, or for some of its rows.

Pure arithmetic. Neighbouring ranges are joined, and so are ranges with a gap below one page between
them: the disk would read the gap anyway, and one call is cheaper than two. So an interleaved block
is read once for both of its families, and a transposed one too wide for that is read line by line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from globe_stream.checkpoint.strided import StridedMatrix
from globe_stream.io.dtypes import TORCH_DTYPES

PAGE = 4096

Index = slice | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """The byte ranges (start, length) to read, relative to a region's block, in file order.

    Read one after another they form a (lines, width) matrix of stored elements, of which the rows
    asked for are `matrix[line_index][:, element_index]`, or its transpose.
    """

    ranges: tuple[tuple[int, int], ...]
    lines: int
    width: int
    line_index: Index
    element_index: Index
    dtype: str
    transposed: bool

    @property
    def nbytes(self) -> int:
        """Bytes read."""
        return self.lines * self.width * TORCH_DTYPES[self.dtype].itemsize

    @property
    def scratch_bytes(self) -> int:
        """Bytes that `select` allocates: none for evenly spaced rows, else a copy of the rows."""
        if isinstance(self.line_index, slice) and isinstance(self.element_index, slice):
            return 0
        return _length(self.line_index) * self.width * TORCH_DTYPES[self.dtype].itemsize

    def select(self, raw: Tensor) -> Tensor:
        """The rows asked for, in the stored dtype, from the bytes read: `raw` (nbytes,) uint8."""
        matrix = raw.view(TORCH_DTYPES[self.dtype]).view(self.lines, self.width)
        chosen = _take(_take(matrix, 0, self.line_index), 1, self.element_index)
        return chosen.T if self.transposed else chosen


def plan_read(region: StridedMatrix, rows: Sequence[int] | None = None) -> ReadPlan:
    """How to read `rows` of the expert's matrix (all of them by default), in that order."""
    return _plan(
        _Geometry(
            dtype=region.dtype,
            minor=region.minor,
            lines=(region.major_start, region.major_step, region.rows),
            elements=(region.minor_start, region.minor_step, region.columns),
            transposed=region.transposed,
        ),
        None if rows is None else tuple(rows),
    )


@dataclass(frozen=True, slots=True)
class _Geometry:
    """What a plan depends on: a region without its place. Steps are (start, step, count)."""

    dtype: str
    minor: int
    lines: tuple[int, int, int]
    elements: tuple[int, int, int]
    transposed: bool


@lru_cache(maxsize=256)
def _plan(region: _Geometry, rows: tuple[int, ...] | None) -> ReadPlan:
    itemsize, minor = TORCH_DTYPES[region.dtype].itemsize, region.minor
    lines = _positions(region.lines, None if region.transposed else rows)
    elements = _positions(region.elements, rows if region.transposed else None)
    spans = _spans(elements, region.elements[1], itemsize)
    width = sum(stop - start for start, stop in spans)
    if len(spans) == 1 and (minor - width) * itemsize < PAGE:
        width, spans = minor, [(0, minor)]
        taken = _spans(lines, region.lines[1], minor * itemsize)
        pieces = [(a * minor, (b - a) * minor) for a, b in taken]
    else:
        taken = [(line, line + 1) for line in sorted(set(lines))]
        pieces = [(line * minor + a, b - a) for line, _ in taken for a, b in spans]
    return ReadPlan(
        ranges=tuple((start * itemsize, count * itemsize) for start, count in pieces),
        lines=sum(b - a for a, b in taken),
        width=width,
        line_index=_index(lines, taken),
        element_index=_index(elements, spans),
        dtype=region.dtype,
        transposed=region.transposed,
    )


def bound_bytes(region: StridedMatrix, count: int) -> int:
    """The most bytes that any `count` rows of the expert's matrix can take to read."""
    whole = plan_read(region).nbytes
    if region.transposed:
        return whole
    line = region.minor * region.itemsize
    return min(whole, count * (region.major_step * line + PAGE))


def _positions(steps: tuple[int, int, int], chosen: tuple[int, ...] | None) -> list[int]:
    start, step, count = steps
    return [start + step * i for i in (range(count) if chosen is None else chosen)]


def _spans(positions: list[int], step: int, item_bytes: int) -> list[tuple[int, int]]:
    """Half-open spans that cover `positions`, joined over gaps of less than a page.

    With a step above one a span starts and ends between interleaved groups, so that all families
    of a block have the same spans.
    """
    spans: list[list[int]] = []
    for position in sorted(set(positions)):
        start = position - position % step
        if spans and (start - spans[-1][1]) * item_bytes < PAGE:
            spans[-1][1] = max(spans[-1][1], start + step)
        else:
            spans.append([start, start + step])
    return [(start, stop) for start, stop in spans]


def _index(positions: list[int], spans: list[tuple[int, int]]) -> Index:
    """Where `positions` are once the spans lie one after another: a slice if evenly spaced."""
    before: dict[int, int] = {}
    total = 0
    for start, stop in spans:
        before |= {position: total + position - start for position in range(start, stop)}
        total += stop - start
    index = tuple(before[position] for position in positions)
    step = index[1] - index[0] if len(index) > 1 else 1
    if step > 0 and index == tuple(range(index[0], index[-1] + 1, step)):
        return slice(index[0], index[-1] + 1, step)
    return index


def _length(index: Index) -> int:
    if isinstance(index, slice):
        return len(range(index.start, index.stop, index.step))
    return len(index)


def _take(matrix: Tensor, dimension: int, index: Index) -> Tensor:
    if isinstance(index, slice):
        return matrix[index] if dimension == 0 else matrix[:, index]
    return matrix.index_select(dimension, torch.tensor(index, device=matrix.device))
