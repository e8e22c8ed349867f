"""Byte arithmetic of seeding: what its stages hold at their peak, above the base.

Measuring is `cost_model.measure_bytes`. Source: docs/design.md, section Memory.
"""

from collections.abc import Collection

from globe_stream.factorization.adapters import fitted_together
from globe_stream.factorization.sizes import GroupSizes
from globe_stream.kernels.gram import PANEL_ROWS
from globe_stream.kernels.nnls import BATCH_ROWS as NNLS_ROWS
from globe_stream.kernels.pivoting import CHUNK_BYTES as NNLS_CHUNK_BYTES
from globe_stream.memory.cost_model import (
    CHUNK_READ_COPIES,
    BatchPlan,
    ReaderBytes,
    bank_tile_bytes,
    page_rounding,
    rotation_bytes,
    tile_rows,
)

POLISH_CHUNKS = 5
"""Blocks of NNLS_CHUNK_BYTES that an exact solve holds: gathered, masked, factored, and copies."""
EIGEN_BYTES = 8 * 5
"""An eigendecomposition in float64, per element: matrix, vectors and 2 p^2 of LAPACK's."""


def statistics_bytes(
    sizes: GroupSizes, batch_plan: BatchPlan, reader: ReaderBytes, kinds: Collection[str]
) -> int:
    """First pass: the reader, per-row sums, and what the kinds of proxies need.

    The left Gram comes with one product panel; the Procrustes mean (r, d) with the rotation of one
    expert or, at first, its eigenvectors.
    """
    square = sizes.p * sizes.p
    gram = square * (8 + 4) if "left_gram" in kinds else 0
    one = max(rotation_bytes(sizes) + 4 * 2 * sizes.rank * sizes.d, EIGEN_BYTES * square)
    procrustes_mean = 4 * sizes.rank * sizes.d + one if "procrustes" in kinds else 0
    return reader(batch_plan.batch, None) + gram + procrustes_mean + 48 * sizes.experts


def proxies_bytes(
    sizes: GroupSizes, batch_plan: BatchPlan, reader: ReaderBytes, kind: str, proxy_itemsize: int
) -> int:
    """Second pass: the reader and the proxies of a batch, in float32, as stored and as written.

    What is written is one tile's rows of the batch, made contiguous.

    left_gram holds A0 (p, r) too, after an eigendecomposition of the (p, p) left Gram in
    float64; svd does the same per expert.
    procrustes holds the Procrustes mean and the rotations of a few experts.
    """
    rows = sizes.rank if kind == "rows" else None
    each = sizes.rank * (4 + proxy_itemsize) + tile_rows(sizes) * proxy_itemsize
    working = reader(batch_plan.batch, rows) + batch_plan.batch * sizes.d * each
    working += page_rounding(sizes, batch_plan.batch)
    eigen = EIGEN_BYTES * sizes.p * sizes.p
    if kind == "left_gram":
        return 4 * 2 * sizes.p * sizes.rank + max(eigen, working)
    if kind == "procrustes":
        rotated = min(batch_plan.batch, fitted_together(sizes.rank, sizes.d))
        return 4 * sizes.rank * sizes.d + working + rotated * rotation_bytes(sizes)
    return working + (eigen if kind == "svd" else 0)


def gram_bytes(sizes: GroupSizes, proxy_itemsize: int, products: int | None = None) -> int:
    """Gram matrix: a tile of proxies as stored, one 4096-wide float32 slice, C and its panels.

    Where C is never formed (`products` given), one panel of the tile in float32 and float64.
    """
    n, width = sizes.experts, tile_rows(sizes) * sizes.d
    tile = n * width * proxy_itemsize
    if products is not None:
        return tile + min(n, PANEL_ROWS) * width * (4 + 8)
    panels = PANEL_ROWS * n * (4 + 8)
    return tile + n * (4096 * 4 + 8 * n) + panels


def atoms_bytes(sizes: GroupSizes, proxy_itemsize: int, products: int | None = None) -> int:
    """Atoms and codes: the method, then the codes, then the bank.

    A method on the formed C (N, N) holds up to six more such matrices in an eigendecomposition,
    and twelve (N, m). One that only takes products of C with `products` = l vectors holds ten
    (N, l) and eight (l, l), a proxy tile in both widths and its product with the vectors.
    The codes take their own four (N, m) and the arrays of one batch of rows; the bank a proxy tile
    in both widths and bank tiles.
    """
    n, m, tiles = sizes.experts, sizes.bases, bank_tile_bytes(sizes)
    width = tile_rows(sizes) * sizes.d
    block = n * width * (proxy_itemsize + 4)
    rows = 8 * 12 * min(n, NNLS_ROWS) * m
    coding = 8 * 4 * n * m + rows + POLISH_CHUNKS * min(NNLS_CHUNK_BYTES, 8 * n * m * m)
    building = 8 * 4 * n * m + max(block + 2 * tiles, tiles * (2 + CHUNK_READ_COPIES))
    if products is None:
        square = 8 * n * n
        return square + max(8 * 12 * n * m + 6 * square, coding, building)
    method = 8 * (10 * n * products + 8 * products**2) + block + 4 * width * products
    return max(method, coding + n * width * proxy_itemsize, building)


def svd_work_bytes(p: int, d: int) -> int:
    """The eigenvalues of one expert's smaller Gram matrix: W and four such matrices in float64."""
    return 8 * (p * d + 4 * min(p, d) ** 2)


def baseline_bytes(sizes: GroupSizes, batch_plan: BatchPlan, reader: ReaderBytes) -> int:
    """Spectra: the reader and the work of one expert."""
    return reader(batch_plan.batch, None) + svd_work_bytes(sizes.p, sizes.d)
