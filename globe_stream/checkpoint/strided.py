"""Where the elements of one expert matrix lie in a file, whatever the layout.

Every layout stores an expert inside a *block*: `major` x `minor` elements, where consecutive
elements of a major line are consecutive in the file. The expert's own matrix takes some of the
lines (`major_start`, `major_step`) and some of the elements of each (`minor_start`, `minor_step`),
and is either that matrix or its transpose. So a plain (p, d) tensor, a slice of a stacked one, a
transposed one and an interleaved one differ by numbers only, and reading and writing back share
one description.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from globe_stream.io.dtypes import ITEM_BYTES, TORCH_DTYPES
from globe_stream.io.safetensors import TensorEntry

FP8_BLOCK = 128
"""Side of the square blocks of an fp8 matrix that share one scale."""

MXFP4_GROUP = 32
"""Consecutive elements of a row of an mxfp4 matrix that share one scale."""


@dataclass(frozen=True, slots=True)
class StridedMatrix:
    """A matrix inside a file.

    Logical element (a, b) of the region, a < rows and b < columns, lies at
    `start + ((major_start + a * major_step) * minor + minor_start + b * minor_step)` elements,
    `start` being a byte offset in the file. `transposed` says that the expert's matrix is the
    transpose of the region: element (b, a).
    """

    path: Path
    tensor: str
    dtype: str
    start: int
    major: int
    minor: int
    major_start: int
    major_step: int
    rows: int
    minor_start: int
    minor_step: int
    columns: int
    transposed: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return TORCH_DTYPES[self.dtype].itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of the whole block, other families' elements included."""
        return self.major * self.minor * self.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of this matrix alone."""
        return self.rows * self.columns * self.itemsize

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the expert's matrix."""
        return (self.columns, self.rows) if self.transposed else (self.rows, self.columns)

    @property
    def offset(self) -> int:
        """Byte offset in the file of element (0, 0)."""
        inner = self.major_start * self.minor + self.minor_start
        return self.start + inner * self.itemsize

    def row_block(self, first: int, count: int) -> "StridedMatrix":
        """The region of rows `first` to `first + count` of the expert's matrix."""
        if self.transposed:
            start = self.minor_start + first * self.minor_step
            return replace(self, minor_start=start, columns=count)
        start = self.major_start + first * self.major_step
        return replace(self, major_start=start, rows=count)

    def column_block(self, first: int, count: int) -> "StridedMatrix":
        """The region of columns `first` to `first + count` of the expert's matrix."""
        flipped = replace(self, transposed=not self.transposed)
        return replace(flipped.row_block(first, count), transposed=self.transposed)

    def view(self, block: Tensor) -> Tensor:
        """The expert's matrix as a view of `block` (block_bytes,) uint8, in the stored dtype."""
        lines = block.view(TORCH_DTYPES[self.dtype]).view(self.major, self.minor)
        last_row = self.major_start + (self.rows - 1) * self.major_step + 1
        last_column = self.minor_start + (self.columns - 1) * self.minor_step + 1
        own = lines[
            self.major_start : last_row : self.major_step,
            self.minor_start : last_column : self.minor_step,
        ]
        return own.T if self.transposed else own

    def scatter(self, block: Tensor, matrix: Tensor) -> None:
        """Write `matrix` (shape of the expert, any float dtype) into its place in `block`.

        `block` (block_bytes,) uint8 holds the bytes of the whole block; elements of other families
        are left as they are. Rounding to the stored dtype is torch's, to nearest even.
        """
        self.view(block).copy_(matrix)


@dataclass(frozen=True, slots=True)
class Storage:
    """How one expert matrix is stored: its `weight`, and the `scale` of a quantised one.

    `block` is the (rows, columns) that share one scale. `phase` is the position of element (0, 0)
    inside its block, which is not zero only for a part of a matrix whose blocks it cuts. `factor`
    (1, 1) belongs to all scales, which are divided by it if `divides`, else multiplied.
    """

    weight: StridedMatrix
    scale: StridedMatrix | None = None
    block: tuple[int, int] = (FP8_BLOCK, FP8_BLOCK)
    phase: tuple[int, int] = (0, 0)
    factor: StridedMatrix | None = None
    divides: bool = False

    @property
    def regions(self) -> tuple[StridedMatrix, ...]:
        """Everything to read: weight, scale and factor as far as there are any."""
        return tuple(part for part in (self.weight, self.scale, self.factor) if part is not None)

    @property
    def nbytes(self) -> int:
        """Stored bytes of the matrix, scales included."""
        return sum(region.nbytes for region in self.regions)


def contiguous(entry: TensorEntry, rows: int, columns: int, number: int = 0) -> StridedMatrix:
    """The region of the row-major (rows, columns) matrix `number` of those that fill `entry`."""
    start = entry.start + number * rows * columns * ITEM_BYTES[entry.dtype]
    return StridedMatrix(
        path=entry.path,
        tensor=entry.name,
        dtype=entry.dtype,
        start=start,
        major=rows,
        minor=columns,
        major_start=0,
        major_step=1,
        rows=rows,
        minor_start=0,
        minor_step=1,
        columns=columns,
    )
