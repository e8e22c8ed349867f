"""Accumulation of Gram matrices over blocks, and their normalisation."""

import torch
from torch import Tensor

from globe_stream.errors import InputError
from globe_stream.kernels.coarse import Precision, coarse_bmm

REDUCTION_TILE = 4096
PANEL_ROWS = 512
TRIANGLE_PANELS = 4
SMALLEST_PANEL = 128
"""Panels with fewer rows multiply more slowly than they save."""


def accumulate_gram(total: Tensor, block: Tensor) -> None:
    """Add ``block block^T`` to ``total`` in place.

    Products run over reduction tiles of 4096 in float32 (float64 for a float64 block) and are
    summed in the dtype of ``total``, so that long reductions keep their accuracy; only one
    triangle is computed, panel by panel, and mirrored.

    Args:
        total: (N, N) float64, on the CPU where the device has no float64; symmetric.
        block: (N, k) floating; half precisions are widened before multiplying.

    Memory: one (N, 4096) tile in float32 if the block is narrower, and an (512, N) panel.

    Source: docs/design.md, sections Gram space and Numerics.
    """
    for start in range(0, block.shape[1], REDUCTION_TILE):
        tile = block[:, start : start + REDUCTION_TILE]
        if tile.dtype in (torch.bfloat16, torch.float16):
            tile = tile.float()
        _accumulate_tile(total, tile)


def _accumulate_tile(total: Tensor, tile: Tensor) -> None:
    for top in range(0, tile.shape[0], PANEL_ROWS):
        bottom = min(top + PANEL_ROWS, tile.shape[0])
        panel = (tile[top:bottom] @ tile[:bottom].T).to(total.device).to(total.dtype)
        lower = panel[:, top:].tril()  # a matrix product need not be exactly symmetric
        panel[:, top:] = lower + lower.tril(-1).T
        total[top:bottom, :bottom] += panel
        total[:top, top:bottom] += panel[:, :top].T


def row_gram(
    matrices: Tensor, precision: Precision = "float32", out: Tensor | None = None
) -> Tensor:
    """X X^T (b, r, r) for X (b, r, k): one triangle in panels of rows, mirrored.

    With n panels the products take (n + 1) / 2n of the operations of the whole; small matrices
    are multiplied whole. `out` (b, r, r), which may not be X, is filled and returned.
    """
    rows = matrices.shape[1]
    height = -(-rows // TRIANGLE_PANELS)
    if height < SMALLEST_PANEL:
        return coarse_bmm(matrices, matrices.mT, precision, out)
    gram = matrices.new_empty(len(matrices), rows, rows) if out is None else out
    for top in range(0, rows, height):
        bottom = min(top + height, rows)
        panel = gram[:, top:bottom, :bottom]
        coarse_bmm(matrices[:, top:bottom], matrices[:, :bottom].mT, precision, out=panel)
        gram[:, :top, top:bottom] = panel[:, :, :top].mT
    return gram


def fix_signs(vectors: Tensor) -> Tensor:
    """Turn the columns of (n, k) so that the largest entry of each is positive."""
    peaks = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return torch.where(peaks < 0, -vectors, vectors)


def normalized(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Scale a Gram matrix to unit diagonal.

    Args:
        gram: C (N, N), unnormalised.

    Returns:
        ``C_ij / sqrt(C_ii C_jj)`` (N, N) float64 with an exact unit diagonal, and the norms
        ``sqrt(C_ii)`` (N,) float64.

    Raises:
        InputError: an element with zero, negative or non-finite norm; positions are named.

    Source: docs/design.md, section Gram space.
    """
    squares = gram.diagonal().double()
    usable = torch.isfinite(squares) & (squares > 0)
    if not bool(usable.all()):
        bad = (~usable).nonzero()[:, 0].tolist()
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise InputError(
            f"gram: {len(bad)} proxies are zero or not finite (positions {shown}); "
            "exclude those experts or choose other proxies"
        )
    norms = squares.sqrt()
    scaled = gram.double() / norms[:, None] / norms[None, :]
    scaled.fill_diagonal_(1.0)
    return scaled, norms
