"""What every stage computes and reads: floating-point operations and bytes, counted in one place.

Products, factorizations and solves count (a product of (n, k) and (k, l) matrices is 2 n k l), work
element by element does not. Iterations that may end early (k-means, the dictionary) are counted as
if they did not. Bytes are those read from the checkpoint, and those written to and read from the
run's own disk (spilled proxies and banks, commits). Source: docs/design.md, section Operations.
"""

from dataclasses import dataclass
from itertools import pairwise

from globe_stream.factorization.sizes import GroupSizes
from globe_stream.io.records import Record
from globe_stream.kernels.gram import PANEL_ROWS, SMALLEST_PANEL, TRIANGLE_PANELS
from globe_stream.kernels.polar import STEPS
from globe_stream.kernels.ridge import BLOCK

METRIC_SAMPLES = 16
"""Experts of an epoch whose adapters and row spaces enter the metric, at most."""
PROBES = 128
"""Random vectors that estimate the curvature of an expert."""
MEAN_SAMPLES = 256
"""Experts that the Procrustes mean is made of: more move it by less than one part in a hundred."""
DICTIONARY_STEPS = 30
"""Steps of each of the solves of a round of the dictionary."""


@dataclass(frozen=True)
class Work(Record):
    """What one stage takes: operations in float32 and float64, bytes read and on the own disk."""

    single: float = 0.0
    double: float = 0.0
    read_bytes: float = 0.0
    disk_bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.single + other.single,
            self.double + other.double,
            self.read_bytes + other.read_bytes,
            self.disk_bytes + other.disk_bytes,
        )

    @property
    def operations(self) -> float:
        """Of both precisions."""
        return self.single + self.double


@dataclass(frozen=True)
class EpochKind:
    """What decides an epoch's work besides sizes: the options that change its products.

    `beta` is the share of the weight-aware targets, which `pinv` makes pseudo-inverse ones;
    `projected` says that rotations are those to mixtures which the fit has projected W on.
    """

    beta: float
    pinv: bool
    projected: bool
    coding_steps: int
    sparse: bool


def row_gram(rows: int, columns: int) -> float:
    """X X^T for X (rows, columns), one triangle in panels."""
    height = -(-rows // TRIANGLE_PANELS)
    if height < SMALLEST_PANEL:
        return 2.0 * rows * rows * columns
    ends = _ends(rows, height)
    return sum(2.0 * (bottom - top) * bottom * columns for top, bottom in pairwise(ends))


def rotation(rows: int, columns: int) -> float:
    """Nearly orthonormal rows of a (rows, columns) matrix."""
    step = row_gram(rows, rows) + 2.0 * rows * rows * columns
    return STEPS * (row_gram(rows, columns) + step)


def ridge_solve(side: int, columns: int) -> float:
    """A Cholesky factor (side, side) and the solution for so many columns, large ones by blocks."""
    squares = 0
    if side >= 2 * BLOCK:
        squares = sum((after - before) ** 2 for before, after in pairwise(_ends(side, BLOCK)))
    return side**3 / 3 + 2.0 * (side * side + squares) * columns


def fit(sizes: GroupSizes) -> float:
    """An expert's mixture, and its adapter fitted to it."""
    m, r, p, d = _dimensions(sizes)
    return 2.0 * m * r * d + row_gram(r, d) + 2.0 * p * r * d + ridge_solve(r, p)


def metric_stride(experts: int) -> int:
    """One of so many experts enters the metric in an epoch."""
    return -(-experts // METRIC_SAMPLES)


def statistics(sizes: GroupSizes, proxies: str) -> Work:
    """First pass: the left Gram matrix, or the Procrustes mean over a sample."""
    single = double = 0.0
    if proxies == "left_gram":
        single = 2.0 * sizes.p**2 * sizes.d * sizes.experts
    if proxies == "procrustes":
        single = (min(MEAN_SAMPLES, sizes.experts) - 1) * _rotated(sizes)
        double = sizes.spectrum_operations  # the first sets the rotation
    return Work(single, double, sizes.stored_bytes)


def proxies(sizes: GroupSizes, kind: str, itemsize: int) -> Work:
    """Second pass: an (r, d) factor of every expert, spilled with `itemsize` bytes an element."""
    _, r, p, d = _dimensions(sizes)
    single = {"left_gram": 2.0 * p * r * d, "svd": 2.0 * p * r * d}.get(kind, 0.0)
    if kind == "procrustes":
        single = _rotated(sizes)
    double = sizes.spectrum_operations if kind == "svd" else 0.0
    share = r / p if kind == "rows" else 1.0
    n = sizes.experts
    return Work(n * single, n * double, share * sizes.stored_bytes, n * r * d * itemsize)


def gram(sizes: GroupSizes, itemsize: int) -> Work:
    """The Gram matrix of the proxies (N, N), its lower panels, and its eigenvalues."""
    n, width = sizes.experts, sizes.rank * sizes.d
    ends = _ends(n, PANEL_ROWS)
    single = sum(2.0 * (bottom - top) * bottom * width for top, bottom in pairwise(ends))
    return Work(single, 4 / 3 * n**3, 0.0, n * width * itemsize)


def atoms(sizes: GroupSizes, rounds: int, itemsize: int) -> Work:
    """The dictionary at most, and the bank that it makes of the proxies."""
    n, m, width = sizes.experts, sizes.bases, sizes.rank * sizes.d
    one = 4.0 * n * n * m + 3 * DICTIONARY_STEPS * 2.0 * n * m * m
    disk = n * width * itemsize + 3 * sizes.bank_bytes
    return Work(2.0 * n * m * width, rounds * one, 0.0, disk)


def measure(sizes: GroupSizes) -> Work:
    """Third pass: every expert fitted."""
    return Work(sizes.experts * fit(sizes), 0.0, sizes.stored_bytes, sizes.bank_bytes)


def baseline(sizes: GroupSizes, sample: int) -> Work:
    """The spectra of a sample of experts."""
    share = sample / sizes.experts
    return Work(0.0, sample * sizes.spectrum_operations, share * sizes.stored_bytes)


def epoch(sizes: GroupSizes, kind: EpochKind) -> Work:
    """One pass that trains, and the step of the bank after it."""
    m, r, p, d = _dimensions(sizes)
    each = fit(sizes) + 4.0 * m * r * d  # products with the bank, for codes and for its step
    if kind.beta < 1:
        each += rotation(r, p) + (2.0 if kind.projected else 4.0) * p * r * d
    if kind.beta > 0:
        seen = 2.0 * p * r * r + ridge_solve(r, d) if kind.pinv else 2.0 * p * r * min(PROBES, r)
        each += 4.0 * p * r * d + seen
    solves = kind.coding_steps * (3 if kind.sparse else 1) + 3
    codes = 2.0 * m * m * (solves + 3)
    sampled = -(-sizes.experts // metric_stride(sizes.experts))
    sample = ridge_solve(r, d) + 2.0 * d * d * r + 2.0 * r * r * p
    n = sizes.experts
    passed = Work(n * each + sampled * sample, n * codes, sizes.stored_bytes)
    return passed + bank_step(sizes, identity=kind.beta < 1 or kind.pinv)


def bank_step(sizes: GroupSizes, *, identity: bool) -> Work:
    """Between two passes: the metric's Gram matrix of the atoms, the step, and its commit.

    In a metric other than the identity every atom is multiplied from both sides, before the pass
    and after it.
    """
    m, r, _, d = _dimensions(sizes)
    metric = 2.0 * r * r * d if identity else 2 * (2.0 * r * r * d + 2.0 * r * d * d)
    products = (3 if identity else 4) * 2.0 * m * m * r * d
    double = 0.0 if identity else 2.0 * (r**3 + d**3) + r**3 / 3 + 2.0 * r * r * min(PROBES, r)
    return Work(m * metric + products, double + 4 / 3 * r**3, 0.0, 3 * sizes.bank_bytes)


def _ends(rows: int, height: int) -> list[int]:
    """Where panels of `height` rows begin, and the end of the last."""
    return [*range(0, rows, height), rows]


def _rotated(sizes: GroupSizes) -> float:
    """An expert rotated to the Procrustes mean."""
    return 4.0 * sizes.p * sizes.rank * sizes.d + rotation(sizes.rank, sizes.p)


def _dimensions(sizes: GroupSizes) -> tuple[int, int, int, int]:
    """m, r, p, d."""
    return sizes.bases, sizes.rank, sizes.p, sizes.d
