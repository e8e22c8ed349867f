"""Byte arithmetic of exports: what they hold at their peak, above the base.

Source: docs/design.md, section Memory.
"""

from globe_stream.factorization.sizes import GroupSizes
from globe_stream.io.files import PIECE_BYTES
from globe_stream.memory import cost_model
from globe_stream.memory.seeding_cost import svd_work_bytes


def estimate_export(
    sizes: GroupSizes,
    reader: int,
    banks: int,
    *,
    rounds: bool = False,
    quantizes: bool = False,
    weighs: bool = False,
) -> int:
    """Bytes of an export above the base, for `banks` resident bytes of banks and a `reader`.

    One expert's mixture and fit (`cost_model.fit_bytes`) and two more (r, d) in a curved
    activation; its adapter scaled (p, r); its gate-and-up block as stored (2 p, d), at most
    float32; one atom; the copy buffer twice; codes as supports. An export that `rounds` holds of an
    adapter (p, r), or of a tile of the bank, three more in float32 and five matrices of its side in
    float64, and for a bank dense codes. One that `quantizes` holds of an expert H, its rows made
    orthonormal and two matrices of its side in float64, of the adapter nine arrays as large as it
    in float32 while groups try their scales, and the paths of a trellis code; of the bank a tile
    with its numbers. One that `weighs` errors by the inputs of a layer holds in float64 the metric
    (d, d), half of it more while it is read, and of an expert W and its product with the metric, H
    and its own, seven matrices like A and as many of its side.
    """
    r, p, d, m = sizes.rank, sizes.p, sizes.d, sizes.bases
    codes = 8 * sizes.experts * m
    one = cost_model.fit_bytes(sizes) + 4 * (3 * r * d + p * r + 2 * p * d)
    working = banks + reader + one + 4 * r * d
    if rounds:
        working += 4 * 3 * p * r + 8 * 5 * r * r
        bank = 4 * cost_model.bank_tile_bytes(sizes) + 8 * 5 * m * m + 4 * sizes.experts * m
        working = max(working, bank)
    if quantizes:
        trellis = 16 << 20
        working += 20 * r * d + 24 * r * r + 36 * p * r + trellis
        tile = 2 * min(cost_model.TILE_BYTES, 4 * m * r * d)
        working = max(working, tile + trellis + 8 * 5 * m * m + 4 * sizes.experts * m)
    if weighs:
        working += 4 * 3 * d * d + 8 * (2 * p * d + 2 * r * d + 7 * p * r + 7 * r * r)
    return working + 2 * PIECE_BYTES + codes


def estimate_svd_export(p: int, d: int, reader: int) -> int:
    """Bytes of replacing experts by their truncated SVD: its work and three (p, d) in float32."""
    return reader + svd_work_bytes(p, d) + 4 * 3 * p * d + 2 * PIECE_BYTES
