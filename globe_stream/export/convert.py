"""The content of a tensor before its replaced experts are put in: copied, cast or dequantised."""

import torch

from globe_stream.checkpoint.experts import ExpertMatrix, Key, key_of
from globe_stream.checkpoint.index import ExpertIndex
from globe_stream.checkpoint.reader import read_expert
from globe_stream.checkpoint.strided import FP8_BLOCK, Storage, StridedMatrix, contiguous
from globe_stream.export.shard_plan import Tensor
from globe_stream.io.dtypes import ITEM_BYTES, TORCH_DTYPES, bytes_of
from globe_stream.io.files import pieces
from globe_stream.io.safetensors_writer import SafetensorsWriter

_ROW_BYTES = 32 << 20


def fill_tensor(
    file: SafetensorsWriter,
    tensor: Tensor,
    index: ExpertIndex,
    dequantised: dict[Key, StridedMatrix],
) -> None:
    """Write the content of one tensor; that of replaced experts may be left for later."""
    if tensor.conversion == "copy":
        for start, piece in _stored(tensor):
            file.write(tensor.entry.start + start, piece)
    elif tensor.conversion == "cast":
        _cast(file, tensor)
    elif tensor.conversion == "fp8":
        _fp8(file, tensor)
    elif tensor.conversion == "mxfp4":
        _mxfp4(file, tensor, index, dequantised)


def _stored(tensor: Tensor):  # type: ignore[no-untyped-def]
    position = 0
    for piece in pieces(tensor.source.path, tensor.source.start, tensor.source.stop):
        yield position, piece
        position += len(piece)


def _cast(file: SafetensorsWriter, tensor: Tensor) -> None:
    before, after = TORCH_DTYPES[tensor.source.dtype], TORCH_DTYPES[tensor.entry.dtype]
    ratio = ITEM_BYTES[tensor.source.dtype]
    for start, piece in _stored(tensor):
        values = torch.frombuffer(piece, dtype=before).to(after)
        file.write_tensor(tensor.entry.start + start // ratio * after.itemsize, values)


def _fp8(file: SafetensorsWriter, tensor: Tensor) -> None:
    """Rows at a time, each group of rows read like an expert with scales of its own."""
    entry, scale = tensor.source, tensor.scale
    assert scale is not None
    rows, columns = entry.shape
    weight = contiguous(entry, rows, columns)
    scales = contiguous(scale, *scale.shape)
    step = max(1, _ROW_BYTES // (4 * columns * FP8_BLOCK)) * FP8_BLOCK
    for first in range(0, rows, step):
        count = min(step, rows - first)
        storage = Storage(
            weight.row_block(first, count),
            scales.row_block(first // FP8_BLOCK, -(-count // FP8_BLOCK)),
        )
        part = ExpertMatrix("other", 0, first, False, entry.dtype, (count, columns), storage)
        values = read_expert(part).to(TORCH_DTYPES[tensor.entry.dtype])
        file.write_tensor(tensor.entry.start + first * columns * values.itemsize, values)


def _mxfp4(
    file: SafetensorsWriter,
    tensor: Tensor,
    index: ExpertIndex,
    dequantised: dict[Key, StridedMatrix],
) -> None:
    """Every expert of the tensor that is not replaced, one at a time."""
    for family in index.experts.values():
        for expert in family:
            place = dequantised.get(key_of(expert))
            if place is not None and expert.storage.weight.tensor == tensor.source.name:
                write_matrix(file, place, read_expert(expert))


def write_matrix(
    file: SafetensorsWriter, region: StridedMatrix, matrix: torch.Tensor
) -> torch.Tensor:
    """Round `matrix` to the region's dtype and put it in its place in `file`; returns it rounded.

    `matrix` and the result have the shape of the expert: (p, d), or (d, p) for down. Elements of
    the region's block that belong to others keep their value, so blocks shared by two families may
    be filled one after the other.
    """
    plain = not region.transposed and region.minor_step == 1 == region.major_step
    if plain and region.columns == region.minor:
        stored = torch.empty(region.shape, dtype=TORCH_DTYPES[region.dtype]).copy_(matrix)
        file.write_tensor(region.offset, stored)
        return stored
    block = torch.empty(region.block_bytes, dtype=torch.uint8)
    file.read_into(region.start, bytes_of(block))
    region.scatter(block, matrix)
    file.write_tensor(region.start, block)
    return region.view(block)
