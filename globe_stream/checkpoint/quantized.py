"""Which quantisation a stored matrix has, from the dtypes and shapes of what lies beside it.

A matrix is its weight and, by the names of `names.PARTS`, its scales. Readable are 8-bit elements
with a scale for the tensor, each row, each group of a row, or each block; 4-bit integers and 4-bit
floats with a scale for each group of a row; and whatever is not quantised.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from globe_stream.checkpoint.dequantize import FLOAT_DTYPES, per_item
from globe_stream.checkpoint.layouts import at_path
from globe_stream.checkpoint.strided import FP8_BLOCK, Storage, contiguous
from globe_stream.errors import InputError
from globe_stream.io.records import JsonObject
from globe_stream.io.safetensors import TensorEntry

Parts = Mapping[str, TensorEntry]

WEIGHTS = ("weight", "packed", "blocks")
"""The parts that hold a matrix's elements."""

_SCALES = {"weight": ("scale_inv", "scale"), "packed": ("scale",), "blocks": ("scales",)}
_BESIDE = {
    "weight": ("scale_inv", "scale", "scale_2"),
    "packed": ("scale", "shape", "global_scale"),
    "blocks": ("scales",),
}
_EXPONENTS = ("U8", "F8_E8M0")
_SCALE_DTYPES = (*FLOAT_DTYPES, *_EXPONENTS)
_NVFP4_SCALE = "F8_E4M3"
_UNREADABLE = {
    "zero_point": "zero points: only symmetric quantisation can be read",
    "order": "an order of columns (g_idx): only groups of consecutive columns can be read",
}


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """One tensor's matrices, all (rows, columns), and how each is stored."""

    entry: TensorEntry
    dtype: str
    rows: int
    columns: int
    scale: TensorEntry | None = None
    scale_shape: tuple[int, int] = (1, 1)
    block: tuple[int, int] = (FP8_BLOCK, FP8_BLOCK)
    factor: TensorEntry | None = None
    divides: bool = False

    def storage(self, number: int = 0) -> Storage:
        """Where the matrix `number` of those that fill the tensor lies."""
        weight = contiguous(self.entry, self.rows, self.columns // per_item(self.dtype), number)
        if self.scale is None:
            return Storage(weight)
        scale = contiguous(self.scale, *self.scale_shape, number)
        factor = None if self.factor is None else contiguous(self.factor, 1, 1)
        return Storage(weight, scale, self.block, factor=factor, divides=self.divides)


def stored_matrix(parts: Parts, config: JsonObject, lead: int = 0) -> StoredMatrix:
    """How the matrix with these parts is stored; `lead` sides come before its (rows, columns).

    `config` is the model's. Raises InputError, naming the tensor, when a part is missing, does not
    fit the others, or belongs to a quantisation that cannot be read.
    """
    kind = next((kind for kind in WEIGHTS if kind in parts), None)
    if kind is None:
        lonely = next(iter(parts.values()))
        wanted = "blocks" if "scales" in parts else "weight"
        raise missing_part(lonely, wanted)
    entry = parts[kind]
    for part, reason in _UNREADABLE.items():
        if part in parts:
            raise InputError(f"{entry.path}: tensor {parts[part].name} holds {reason}.")
    strange = [part for part in parts if part not in (kind, *_BESIDE[kind])]
    if strange:
        raise InputError(
            f"{entry.path}: tensor {parts[strange[0]].name} does not belong beside {entry.name}. "
            "The checkpoint mixes two layouts."
        )
    if kind == "blocks":
        return _mxfp4_blocks(entry, parts)
    require_rank(entry, 2 + lead)
    scale = next((parts[part] for part in _SCALES[kind] if part in parts), None)
    rows, columns = entry.shape[lead:]
    if entry.dtype in FLOAT_DTYPES and kind == "weight":
        if scale is not None:
            raise unreadable(entry, scale, "no scale beside weights that are not quantised")
        return StoredMatrix(entry, entry.dtype, rows, columns)
    if entry.dtype not in ("F8_E4M3", "I8", "U8", "I32"):
        raise InputError(
            f"{entry.path}: tensor {entry.name} has the dtype {entry.dtype}, which is unsupported "
            f"here: experts must be {', '.join(FLOAT_DTYPES)}, fp8, int8, or packed 4-bit elements."
        )
    if scale is None:
        raise missing_part(entry, _SCALES[kind][0])
    return _quantised(parts, entry, scale, config, lead)


def missing_part(entry: TensorEntry, part: str) -> InputError:
    """The error of a tensor without the `part` that belongs to it."""
    return InputError(
        f"{entry.path}: tensor {entry.name} ({entry.dtype}) has no {part} beside it. "
        "The checkpoint is incomplete, or its quantisation is not supported."
    )


def unreadable(entry: TensorEntry, scale: TensorEntry, expected: str) -> InputError:
    """The error of a tensor whose scale does not belong to it."""
    return InputError(
        f"{scale.path}: tensor {scale.name} is {scale.dtype} {list(scale.shape)} beside "
        f"{entry.name} ({entry.dtype} {list(entry.shape)}); {expected}."
    )


def require_rank(entry: TensorEntry, rank: int) -> None:
    """Raise InputError unless the tensor has `rank` sides, none of them zero."""
    if len(entry.shape) != rank or 0 in entry.shape:
        raise InputError(
            f"{entry.path}: tensor {entry.name} has shape {list(entry.shape)}, "
            f"{rank} sides greater than zero were expected."
        )


def _quantised(
    parts: Parts, entry: TensorEntry, scale: TensorEntry, config: JsonObject, lead: int
) -> StoredMatrix:
    dtype = _element_dtype(entry, scale, config)
    rows, columns = entry.shape[lead], entry.shape[lead + 1] * per_item(dtype)
    shape = _two_sides(scale.shape[lead:] if len(scale.shape) > lead else (), rows)
    allowed = (_NVFP4_SCALE,) if dtype == "NVFP4" else _SCALE_DTYPES
    declared = _declared_block(config)
    block = _block(shape, rows, columns, declared)
    stacks = scale.shape[:lead] == entry.shape[:lead]
    if block is None or scale.dtype not in allowed or not stacks or _wrong_group(dtype, block):
        raise unreadable(
            entry,
            scale,
            f"with block size {list(declared)} one scale for each block, row, group of a row or "
            "tensor was expected",
        )
    stored = StoredMatrix(entry, dtype, rows, columns, scale, shape, block)
    return _with_factor(stored, parts) if dtype == "NVFP4" else stored


def _element_dtype(entry: TensorEntry, scale: TensorEntry, config: JsonObject) -> str:
    if entry.dtype == "F8_E4M3":
        return "F8_E4M3"
    if entry.dtype == "I32":
        bits = _declared_bits(config)
        if bits - {4}:
            raise InputError(
                f"{entry.path}: tensor {entry.name} holds packed integers of "
                f"{', '.join(str(b) for b in sorted(bits))} bits: only 4 can be read."
            )
        return "INT4"
    if entry.dtype == "I8" and scale.dtype not in _EXPONENTS:
        return "INT8"
    if scale.dtype == _NVFP4_SCALE:
        return "NVFP4"
    return "MXFP4"


def _with_factor(stored: StoredMatrix, parts: Parts) -> StoredMatrix:
    """NVFP4 has a second scale for the whole tensor: to divide by, or (ModelOpt) to multiply."""
    divides = "global_scale" in parts
    factor = parts.get("global_scale") or parts.get("scale_2")
    if factor is None:
        raise missing_part(stored.entry, "global_scale")
    if factor.dtype != "F32" or any(side != 1 for side in factor.shape):
        raise unreadable(stored.entry, factor, "one F32 number was expected")
    return replace(stored, factor=factor, divides=divides)


def _two_sides(shape: tuple[int, ...], rows: int) -> tuple[int, int]:
    """A scale's shape as (rows, columns): a number is (1, 1), one number a row is (rows, 1)."""
    if len(shape) == 2:
        return (shape[0], shape[1])
    if shape == (rows,):
        return (rows, 1)
    return (1, 1) if shape in ((), (1,)) else (0, 0)


def _block(
    scales: tuple[int, int], rows: int, columns: int, declared: tuple[int, int]
) -> tuple[int, int] | None:
    """Rows and columns that share a scale, from the scales' shape; None if none fits."""
    if scales == (1, 1):
        return (rows, columns)
    if scales == (-(-rows // declared[0]), -(-columns // declared[1])):
        return declared
    if scales[0] == rows and scales[1] and columns % scales[1] == 0:
        return (1, columns // scales[1])
    return None


def _wrong_group(dtype: str, block: tuple[int, int]) -> bool:
    """4-bit floats have groups of 16 (NVFP4) or 32 (MXFP4) elements, and nothing else."""
    group = {"NVFP4": 16, "MXFP4": 32}.get(dtype)
    return group is not None and block != (1, group)


def _declared_block(config: JsonObject) -> tuple[int, int]:
    declared = at_path(config, "quantization_config.weight_block_size")
    if isinstance(declared, list) and len(declared) == 2:
        return (int(declared[0]), int(declared[1]))
    return (FP8_BLOCK, FP8_BLOCK)


def _declared_bits(config: JsonObject) -> set[int]:
    """The weights' bits in a compressed-tensors config, wherever it is."""
    quantization = _quantization(config)
    groups = quantization.get("config_groups")
    listed = groups.values() if isinstance(groups, dict) else ()
    found = {at_path(group, "weights.num_bits") for group in listed}
    return {bits for bits in found if isinstance(bits, int)}


def _quantization(config: JsonObject) -> JsonObject:
    for path in ("quantization_config", "text_config.quantization_config", "compression_config"):
        value = at_path(config, path)
        if isinstance(value, dict):
            return value
    return {}


def _mxfp4_blocks(entry: TensorEntry, parts: Parts) -> StoredMatrix:
    """Blocks (E, out, in / 32, 16) and scales (E, out, in / 32): rows are (out, in) already."""
    scale = parts.get("scales")
    if scale is None:
        raise missing_part(entry, "scales")
    require_rank(entry, 4)
    if entry.shape != (*scale.shape, 16) or {entry.dtype, scale.dtype} != {"U8"}:
        raise InputError(
            f"{entry.path}: tensor {entry.name} {entry.dtype} {list(entry.shape)} and its "
            f"scales {scale.dtype} {list(scale.shape)} are no mxfp4 blocks and scales."
        )
    _, rows, groups, width = entry.shape
    columns = groups * width * 2
    return StoredMatrix(entry, "MXFP4", rows, columns, scale, (rows, groups), (1, 32))
