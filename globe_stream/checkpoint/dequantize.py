"""Quantised experts to float32: fp8 with block scales, and mxfp4.

Source: the released checkpoints of DeepSeek-V3 (`W = q * scale_inv` by 128 x 128 blocks) and of
gpt-oss (two 4-bit elements a byte, low nibble first, value = table[nibble] * 2^(scale - 127)).
"""

import torch
from torch import Tensor

from globe_stream.checkpoint.strided import FP8_BLOCK, MXFP4_GROUP

FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The eight non-negative values of a 4-bit element (e2m1); the high bit is the sign."""

_ROWS_AT_ONCE = 256


def decode_fp8(out: Tensor, stored: Tensor, scales: Tensor, rows: Tensor, first: int) -> None:
    """Fill `out` (r, k) float32 with `stored` (r, k) float8 times its scales.

    `scales` (ceil(o / 128), ceil(i / 128)) float32 belong to the matrix or the part of it whose
    blocks begin at its scale row 0; `rows` (r,) are the rows' distances from there, and `first` is
    column 0's.
    """
    out.copy_(stored)
    of_rows = scales[rows // FP8_BLOCK]
    columns = out.shape[1]
    for block in range(of_rows.shape[1]):
        start = max(0, block * FP8_BLOCK - first)
        stop = min(columns, (block + 1) * FP8_BLOCK - first)
        out[:, start:stop].mul_(of_rows[:, block, None])


def decode_mxfp4(out: Tensor, blocks: Tensor, scales: Tensor) -> None:
    """Fill `out` (r, k) float32 from `blocks` (r, k / 2) and `scales` (r, k / 32), both uint8."""
    table = _byte_table()
    for start in range(0, out.shape[0], _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        pairs = torch.nn.functional.embedding(blocks[part].int(), table)
        grouped = pairs.view(pairs.shape[0], -1, MXFP4_GROUP)
        factors = torch.exp2(scales[part].to(torch.float32) - 127)
        torch.mul(grouped, factors[:, :, None], out=grouped)
        out[part].copy_(grouped.view(pairs.shape[0], -1))


def decode_scratch_bytes(dtype: str, rows: int, columns: int) -> int:
    """Bytes that decoding one (rows, columns) matrix allocates beside its output."""
    if dtype == "MXFP4":
        part = min(rows, _ROWS_AT_ONCE) * columns
        return 2 * part + 4 * part  # int32 indices of half as many bytes, float32 values
    if dtype == "F8_E4M3":
        return 4 * rows * (-(-columns // FP8_BLOCK) + 1)
    return 0


def _byte_table() -> Tensor:
    """(256, 2): the two elements in every byte, low nibble first."""
    nibbles = torch.tensor([*FP4_VALUES, *(-value for value in FP4_VALUES)])
    byte = torch.arange(256)
    return torch.stack([nibbles[byte & 15], nibbles[byte >> 4]], dim=1)
