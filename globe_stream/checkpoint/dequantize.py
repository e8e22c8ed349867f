"""Quantised experts to float32: elements of 8 or 4 bits times the scale of their block.

Sources: the released checkpoints of DeepSeek-V3 (`W = q * scale_inv` by 128 x 128 blocks), of
DeepSeek-V4 and gpt-oss (two 4-bit floats a byte, low nibble first, scales that are powers of two
given by their exponent), and the formats of compressed-tensors and ModelOpt (`weight_scale` a
tensor, channel, group or block; 4-bit integers with an offset of 8, eight to an int32).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The eight non-negative values of a 4-bit element (e2m1); the high bit is the sign."""

FLOAT_DTYPES = ("BF16", "F16", "F32")
"""What is stored without quantisation."""

_PACKED = {"MXFP4": 2, "NVFP4": 2, "INT4": 8}
_ROWS_AT_ONCE = 256
_INT4_OFFSET = 8


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales of a matrix or of some of its rows.

    `values` (s, t) float32; row i of the matrix has the scales `rows[i]`, and its element j the
    scale (j + first) // `width` of those.
    """

    values: Tensor
    rows: Tensor
    width: int
    first: int = 0


def per_item(dtype: str) -> int:
    """Elements in one stored item of the file: 1 unless they are packed."""
    return _PACKED.get(dtype, 1)


def scale_values(stored: Tensor, dtype: str) -> Tensor:
    """Scales in float32 from those in a file; bytes are exponents of two with an offset of 127."""
    if dtype in ("U8", "F8_E8M0"):
        return torch.exp2(stored.to(torch.float32) - 127)
    return stored.to(torch.float32)


def decode(out: Tensor, stored: Tensor, dtype: str, scales: Scales) -> None:
    """Fill `out` (r, k) float32 with the elements `stored` (r, k / items) times their scales."""
    if dtype in ("MXFP4", "NVFP4"):
        _by_byte(out, stored.view(torch.uint8), _fp4_table())
    elif dtype == "INT4":
        _by_byte(out, stored.view(torch.uint8), _int4_table())
    else:
        out.copy_(stored)
    columns = out.shape[1]
    aligned = scales.first == 0 and columns % scales.width == 0
    for start in range(0, out.shape[0], _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        own = scales.values[scales.rows[part]]
        if aligned:
            grouped = out[part].view(len(own), -1, scales.width)
            grouped.mul_(own[:, : columns // scales.width, None])
            continue
        for block in range(own.shape[1]):
            begin = max(0, block * scales.width - scales.first)
            end = min(columns, (block + 1) * scales.width - scales.first)
            out[part, begin:end].mul_(own[:, block, None])


def _by_byte(out: Tensor, stored: Tensor, table: Tensor) -> None:
    """Fill `out` (r, k) from the bytes `stored` (r, k / 2), a pair of elements of `table` each."""
    for start in range(0, out.shape[0], _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        pairs = torch.nn.functional.embedding(stored[part].int(), table)
        out[part].copy_(pairs.flatten(1)[:, : out.shape[1]])


def decode_scratch_bytes(dtype: str, rows: int, columns: int, block: tuple[int, int]) -> int:
    """Bytes that decoding one (rows, columns) matrix allocates beside its output.

    The scales in float32, those of 256 rows at a time, the row numbers; for packed elements also
    the bytes' indices and values of 256 rows.
    """
    if dtype in FLOAT_DTYPES:
        return 0
    part, across = min(rows, _ROWS_AT_ONCE), -(-columns // block[1]) + 1
    scales = 4 * across * (part + -(-rows // block[0]) + 1) + 16 * rows
    if dtype not in _PACKED:
        return scales
    return scales + part * columns * (2 + 4)


def _pairs(nibbles: Tensor) -> Tensor:
    """(256, 2): the two elements in every byte, low nibble first."""
    byte = torch.arange(256)
    return torch.stack([nibbles[byte & 15], nibbles[byte >> 4]], dim=1)


def _fp4_table() -> Tensor:
    return _pairs(torch.tensor([*FP4_VALUES, *(-value for value in FP4_VALUES)]))


def _int4_table() -> Tensor:
    return _pairs(torch.arange(16, dtype=torch.float32) - _INT4_OFFSET)
