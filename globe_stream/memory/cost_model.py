"""Byte arithmetic: what stages hold at their peak; of banks, of measuring and of training.

An estimate is what a stage adds to the process as it was measured before the stage began (the
`base`: interpreter, libraries, thread pools). Every term stands beside the array it is for; which
batch and which spilling keep a stage within a budget is chosen in `planner`. The other stages of
seeding are in `seeding_cost`, exports in `export_cost`.
Source: docs/design.md, section Memory.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from globe_stream.factorization.adapters import fitted_together
from globe_stream.factorization.sizes import GroupSizes
from globe_stream.io.records import Record
from globe_stream.io.world import PIECE_BYTES as SUM_BYTES
from globe_stream.kernels.nnls import BATCH_ROWS as NNLS_ROWS
from globe_stream.store.tiles import balanced_rows

TILE_BYTES = 32 << 20
"""Target size of one tile of a bank; also one chunk on disk."""
PROXY_TILE_BYTES = 128 << 20
"""Target size of one float32 tile of the proxies."""
WORKSPACE_BYTES = 768 << 20
"""Batches stop growing when their arrays take this much: a bank is then read rarely enough."""
ATOM_CHUNK_BYTES = 32 << 20
"""Whole atoms handled together take about this much, or one atom where that is more."""
HUGE_PAGE_BYTES = 2 << 20
LIVE_ARRAYS = 16
"""Arrays of a batch that are alive at once, each in huge pages of its own."""
MAX_BATCH = 128
COMPILED_BYTES = 16 << 20
"""Kernels that oneDNN compiles for the shapes of a stage and keeps (allocator.py)."""
SLACK_BYTES = 32 << 20
"""Left free of the budget: stacks, code pages and small arrays that no formula names."""
CHUNK_READ_COPIES = 2
"""A chunk is held so many times at most while it is read: whole, and the part asked for."""
BASE_SPREAD_BYTES = 4 << 20
"""The base differs by less than this from one process to the next (measured)."""
DECLARED_BASE_BYTES = 288 << 20
"""Batches are chosen as if the base were this, which it hardly exceeds on a CPU, or so many steps
of BASE_STEP_BYTES more: the same in every process."""
BASE_STEP_BYTES = 128 << 20


@dataclass(frozen=True)
class BatchPlan(Record):
    """Experts a batch, and whether banks are spilled to disk: what the planner may choose."""

    batch: int = 1
    spill: bool = False


@dataclass(frozen=True)
class StagePlan(Record):
    """What was chosen for a stage, and its estimated bytes above the base."""

    stage: str
    batch_plan: BatchPlan
    estimate_bytes: int


SPILLED_BATCHES = 64
"""With a bank on disk, a pass is cut into as few batches as fit the budget, up to this many."""
STEP_TRAFFIC = 18
"""Times that an epoch reads or writes all of a spilled bank, outside of its batches.

The bank and what is of its shape: atoms for the metric 1; gradients zeroed 1, preconditioned 2; the
step reads bank, gradients and momentum and writes the latter two 5; both normalized 4; the new
bank's Gram matrix 1; bank and momentum committed 4.
"""

ReaderBytes = Callable[[int, int | None], int]
"""Resident bytes of a reader for (batch, rows or None)."""


def tile_rows(sizes: GroupSizes) -> int:
    """Rows in a tile of bank and proxies; depends on sizes only, so files never change shape."""
    bank = TILE_BYTES // (4 * sizes.bases * sizes.d)
    proxies = PROXY_TILE_BYTES // (4 * sizes.experts * sizes.d)
    return balanced_rows(sizes.rank, min(bank, proxies))


def bank_tile_bytes(sizes: GroupSizes) -> int:
    """Bytes of one tile of the bank."""
    return 4 * sizes.bases * tile_rows(sizes) * sizes.d


def rotation_bytes(sizes: GroupSizes) -> int:
    """Rotating one expert: the matrix (r, p), two like it and two (r, r)."""
    _, rr, pr = _areas(sizes)
    return 4 * (3 * pr + 2 * rr)


def fit_bytes(sizes: GroupSizes, curved: bool = False) -> int:
    """Arrays of `adapters.fit_adapters` for one expert at the fit's peak, its mixture aside.

    H (r, d) throughout. While factoring: H H^T, its ridged copy and the factor (r, r), and W H^T
    (p, r). While solving: H H^T, the factor, and W H^T, its copy and the solution. For the error:
    H H^T, W H^T, the solution and, where the fit is nearly exact, the residual (p, d). A curved
    activation makes H from two more (r, d) before all that.
    """
    rd, rr, pr = _areas(sizes)
    factoring, solving = 3 * rr + pr, 2 * rr + 3 * pr
    measuring = rr + 2 * pr + sizes.p * sizes.d
    return 4 * (rd + max(factoring, solving, measuring, 2 * rd if curved else 0))


def gradient_bytes(sizes: GroupSizes, rotates: bool, blended: bool, curved: bool) -> int:
    """Arrays of one expert at the peak of finding its gradient, its mixture aside.

    H, H H^T, W H^T and A stay from the fit; residual and gradient take the places of the weights
    and of the mixture. Surrogate: A^T times the residual (r, d), with a curved activation two more
    (r, d) for its slope. Pinv: the right side (d, r) of its solve and the solution, three (r, r).
    Warm-up: the rotation, then the rotated expert (r, d) with the rotation (r, p). A blended epoch
    does both in turn, the first in a copy of the mixture.
    """
    rd, rr, pr = _areas(sizes)
    surrogate = 2 * rd + max(rd if curved else 0, 3 * rr)
    rotation = max(rotation_bytes(sizes) // 4, pr + rd) if rotates else 0
    copy = rd if blended else 0
    return 4 * (rd + rr + 2 * pr + copy + max(surrogate, rotation))


def _areas(sizes: GroupSizes) -> tuple[int, int, int]:
    """Elements of an (r, d), an (r, r) and a (p, r) matrix."""
    return sizes.rank * sizes.d, sizes.rank**2, sizes.p * sizes.rank


def resident_bank(sizes: GroupSizes, spill: bool) -> int:
    """A bank in memory, or the one tile of a spilled one; loading a chunk adds its copies."""
    held = bank_tile_bytes(sizes) if spill else sizes.bank_bytes
    return held + CHUNK_READ_COPIES * bank_tile_bytes(sizes)


def page_rounding(sizes: GroupSizes, batch: int) -> int:
    """What huge pages add: each of a batch's arrays is rounded up, by a page at the most."""
    return LIVE_ARRAYS * min(HUGE_PAGE_BYTES, 4 * batch * sizes.rank * sizes.d)


def _batch_bytes(sizes: GroupSizes, batch: int, each: int) -> int:
    """Mixtures of a batch, and `each` bytes for the experts that are fitted together."""
    rd, _, _ = _areas(sizes)
    return 4 * batch * rd + min(batch, fitted_together(sizes.rank, sizes.d)) * each


def measure_bytes(sizes: GroupSizes, batch_plan: BatchPlan, reader: ReaderBytes) -> int:
    """A pass that refits adapters and measures the error: bank, codes, reader, one batch."""
    codes = 4 * sizes.experts * sizes.bases
    return (
        resident_bank(sizes, batch_plan.spill)
        + codes
        + reader(batch_plan.batch, None)
        + _batch_bytes(sizes, batch_plan.batch, fit_bytes(sizes))
    )


def train_bytes(
    sizes: GroupSizes,
    batch_plan: BatchPlan,
    reader: ReaderBytes,
    *,
    rotates: bool,
    blended: bool,
    curved: bool,
) -> int:
    """An epoch: bank and sum of gradients throughout, and the larger of its pass and its step.

    A batch holds its mixtures, and what fits a few of its experts or else what codes all of them:
    their rows of one tile, and arrays of codes in float64.

    The pass holds the metric's four matrices and two sums, the worst expert's step and the warm
    start's mean (r, d), codes twice, the reader, one batch, and one expert's row-space solve (three
    (d, r), two (r, r)). The step holds atom chunks or a few tiles.
    """
    banks = 2 * (bank_tile_bytes(sizes) if batch_plan.spill else sizes.bank_bytes)
    batch = batch_plan.batch
    squares = 4 * (3 * (sizes.rank**2 + sizes.d**2) + 2 * sizes.rank * sizes.d)
    codes = 2 * 4 * sizes.experts * sizes.bases + 24 * sizes.experts
    solve = 4 * (3 * sizes.rank * sizes.d + 2 * sizes.rank**2)
    one = max(fit_bytes(sizes, curved), gradient_bytes(sizes, rotates, blended, curved))
    fits = min(batch, fitted_together(sizes.rank, sizes.d)) * one
    coding = 4 * batch * tile_rows(sizes) * sizes.d + 8 * 12 * min(batch, NNLS_ROWS) * sizes.bases
    each = reader(batch, None) + 4 * batch * sizes.rank * sizes.d + max(fits, coding) + solve
    each += page_rounding(sizes, batch)
    chunk = min(
        sizes.bank_bytes, max(atom_chunk_bytes(sizes, batch_plan), 4 * sizes.rank * sizes.d)
    )
    inverses = 8 * 3 * max(sizes.rank, sizes.d) ** 2
    step = max(3 * chunk + inverses, (5 + CHUNK_READ_COPIES) * bank_tile_bytes(sizes))
    return banks + squares + codes + max(each, step)


def atom_chunk_bytes(sizes: GroupSizes, batch_plan: BatchPlan) -> int:
    """Whole atoms that are handled together.

    Every chunk reads the whole bank once, so that chunks of a spilled bank take the room that the
    mixtures of a batch have at other times.
    """
    room = 4 * batch_plan.batch * sizes.rank * sizes.d // 3 if batch_plan.spill else 0
    return max(ATOM_CHUNK_BYTES, room)


def measure_traffic(sizes: GroupSizes, batch_plan: BatchPlan) -> int:
    """Bytes that measuring writes to and reads from a spilled bank: all of it for every batch."""
    if not batch_plan.spill:
        return 0
    return sizes.bank_bytes * (1 + math.ceil(sizes.experts / batch_plan.batch))


def train_traffic(sizes: GroupSizes, batch_plan: BatchPlan) -> int:
    """Bytes that an epoch reads from and writes to spilled banks; page caches may save some.

    Every batch composes its mixtures (one reading), codes (one) and adds its gradients to their
    sum (one reading, one writing); every chunk of atoms meets the whole bank in the metric.
    """
    if not batch_plan.spill:
        return 0
    batches = math.ceil(sizes.experts / batch_plan.batch)
    atoms = max(1, atom_chunk_bytes(sizes, batch_plan) // (4 * sizes.rank * sizes.d))
    chunks = math.ceil(sizes.bases / atoms)
    return sizes.bank_bytes * (4 * batches + chunks + STEP_TRAFFIC)


def exchange_bytes(sizes: GroupSizes, proxy_itemsize: int, processes: int) -> dict[str, int]:
    """What a stage holds besides where several processes tell one another of their shares.

    Gram matrix and atoms gather a tile of all proxies: what is sent, received and put in order.
    Everything else, under "", is summed in pieces, or tile by tile of the bank.
    """
    if processes == 1:
        return {"": 0}
    tile = sizes.experts * tile_rows(sizes) * sizes.d * proxy_itemsize
    sums = max(SUM_BYTES, bank_tile_bytes(sizes))
    return {"gram": 3 * tile + sums, "atoms": 3 * tile + sums, "": sums}


def spilled_batches(sizes: GroupSizes) -> list[int]:
    """Batch sizes worth trying with a bank on disk, largest first: every batch reads all of it."""
    counts = range(1, min(SPILLED_BATCHES, sizes.experts) + 1)
    found = {math.ceil(sizes.experts / count) for count in counts}
    while (least := min(found)) > 1:
        found.add(least // 2)
    return sorted(found, reverse=True)


def batches(sizes: GroupSizes, bytes_each: int) -> list[int]:
    """Batch sizes worth trying, largest first, for `bytes_each` per expert."""
    most = max(1, min(MAX_BATCH, sizes.experts, WORKSPACE_BYTES // max(1, bytes_each)))
    sizes_down = []
    while most >= 1:
        sizes_down.append(most)
        most //= 2
    return sizes_down


def budget_for(base: int, estimate_bytes: int) -> int:
    """The budget that a stage asks for: its bytes, the base, compiled kernels and slack."""
    return base + estimate_bytes + COMPILED_BYTES + SLACK_BYTES


def assumed_base(base: int) -> int:
    """What `base` is taken for where a batch is chosen: never less, and hardly ever another."""
    more = max(0, base - DECLARED_BASE_BYTES)
    return DECLARED_BASE_BYTES + math.ceil(more / BASE_STEP_BYTES) * BASE_STEP_BYTES


def safe_budget(least: int) -> int:
    """`least` bytes rounded up to whole MiB that suffice in another process too."""
    return math.ceil((least + BASE_SPREAD_BYTES) / (1 << 20)) << 20
