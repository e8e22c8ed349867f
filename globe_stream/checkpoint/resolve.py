"""One layer's expert tensors to `Expert`s, kind by kind."""

from dataclasses import dataclass, replace
from typing import Any

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.layouts import ModelType, TensorName, config_integer
from globe_stream.checkpoint.strided import (
    FP8_BLOCK,
    MXFP4_GROUP,
    Storage,
    StridedMatrix,
    contiguous,
)
from globe_stream.errors import InputError
from globe_stream.io.safetensors import TensorEntry

Tensors = dict[tuple[str, str, int], TensorEntry]

_DENSE = ("BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class LayoutFields:
    """What the model type and the config add to the names."""

    model_type: str
    model: ModelType
    config: dict[str, Any]


def experts_of(
    name: TensorName, layer: int, tensors: Tensors, fields: LayoutFields
) -> tuple[list[ExpertMatrix], str]:
    """The experts in `tensors`, all of one form and group, and the rule that says so."""
    if name.form == "flat":
        return _flat(layer, tensors, fields), f"F ({_pattern(name)}.{{w1,v1,w2}})"
    if name.form == "shared":
        return _shared(layer, tensors, fields), ""
    if name.form == "per_expert":
        projections = "{w1,w3,w2}" if name.kind == "B" else "{gate,up,down}_proj"
        experts = _per_expert(layer, tensors, fields)
        return experts, f"{name.kind} ({_pattern(name)}.{{E}}.{projections}.weight)"
    projection = next(iter(tensors.values())).name.rsplit(".", 1)
    if ("gate_up", "blocks", 0) in tensors or ("down", "blocks", 0) in tensors:
        return _mxfp4(layer, tensors), f"E mxfp4 ({_pattern(name)}.*_blocks)"
    kind = name.kind or stacked_kind(tensors, fields)
    suffix = ".weight" if projection[-1] == "weight" else ""
    members = "{input,output}_linear" if name.form == "linear" else "{gate_up,down}_proj"
    return _stacked(layer, tensors, kind), f"{kind} ({_pattern(name)}.{members}{suffix})"


def _pattern(name: TensorName) -> str:
    return name.group.replace(f".{name.layer}.", ".{L}.", 1)


def _expert(
    family: str, layer: int, number: int, weight: StridedMatrix, *, shared: bool = False
) -> ExpertMatrix:
    return ExpertMatrix(family, layer, number, shared, weight.dtype, weight.shape, Storage(weight))


def _dense(expert: ExpertMatrix) -> ExpertMatrix:
    if expert.dtype not in _DENSE:
        raise InputError(
            f"{expert.where} has the dtype {expert.dtype}, which is unsupported here: "
            f"experts must be {', '.join(_DENSE)}, fp8 with 128 x 128 scales, or mxfp4."
        )
    return expert


def _per_expert(layer: int, tensors: Tensors, fields: LayoutFields) -> list[ExpertMatrix]:
    experts = []
    for (family, part, number), entry in tensors.items():
        if part == "scale_inv":
            _partner(tensors, family, "weight", number, entry)
            continue
        _require_rank(entry, 2)
        expert = _expert(family, layer, number, contiguous(entry, *entry.shape))
        experts.append(_linear(expert, tensors, fields))
        _check_transposes(family, number, entry, tensors)
    return experts


def _check_transposes(family: str, number: int, entry: TensorEntry, tensors: Tensors) -> None:
    """Up, gate and the transpose of down must have one shape."""
    up = tensors.get(("up", "weight", number))
    expected = up and (up.shape[::-1] if family == "down" else up.shape)
    if expected and entry.shape != expected:
        raise InputError(
            f"{entry.path}: tensor {entry.name} has shape {list(entry.shape)}, "
            f"{list(expected)} was expected beside {up.name if up else ''}."
        )


def _linear(expert: ExpertMatrix, tensors: Tensors, fields: LayoutFields) -> ExpertMatrix:
    """`expert`, stored by itself, with the scale tensor beside it if it is fp8."""
    entry = tensors[expert.family, "weight", expert.expert]
    if entry.dtype != "F8_E4M3":
        return _dense(expert)
    scale = _partner(tensors, expert.family, "scale_inv", expert.expert, entry)
    return replace(expert, storage=Storage(expert.storage.weight, _fp8_scale(entry, scale, fields)))


def _fp8_scale(entry: TensorEntry, scale: TensorEntry, fields: LayoutFields) -> StridedMatrix:
    block = (fields.config.get("quantization_config") or {}).get("weight_block_size")
    expected = tuple(-(-side // FP8_BLOCK) for side in entry.shape)
    if scale.dtype != "F32" or scale.shape != expected or block not in (None, [FP8_BLOCK] * 2):
        raise InputError(
            f"{scale.path}: tensor {scale.name} is {scale.dtype} {list(scale.shape)} with block "
            f"size {block}, F32 {list(expected)} with {[FP8_BLOCK] * 2} was expected: "
            "only fp8 with one scale for 128 x 128 elements can be read."
        )
    return contiguous(scale, *scale.shape)


def _partner(
    tensors: Tensors, role: str, part: str, number: int, entry: TensorEntry
) -> TensorEntry:
    partner = tensors.get((role, part, number))
    if partner is None:
        raise InputError(
            f"{entry.path}: tensor {entry.name} ({entry.dtype}) has no {part} beside it. "
            "The checkpoint is incomplete, or its quantisation is not supported."
        )
    return partner


def _require_rank(entry: TensorEntry, rank: int) -> None:
    if len(entry.shape) != rank or 0 in entry.shape:
        raise InputError(
            f"{entry.path}: tensor {entry.name} has shape {list(entry.shape)}, "
            f"{rank} sides greater than zero were expected."
        )


def stacked_kind(tensors: Tensors, fields: LayoutFields) -> str:
    """C, D or E: the one of the model type's kinds whose shapes are those of the tensors.

    With gate_up and down together the shapes tell C from D even for p = d and 2p = d; D and E look
    alike, and only the model type tells.
    """
    entry = tensors.get(("gate_up", "weight", 0)) or tensors["down", "weight", 0]
    _require_rank(entry, 3)
    candidates = [kind for kind in fields.model.kinds if kind in "CDE"]
    if not candidates:
        raise InputError(
            f"{entry.path}: tensor {entry.name} {list(entry.shape)} is a stack of experts whose "
            f"orientation is not known for model type {fields.model_type}, and no shape proves it. "
            "Add the type to checkpoint/layouts.py."
        )
    fitting = [kind for kind in candidates if _fits(kind, tensors, fields)]
    if len(fitting) != 1:
        raise InputError(
            f"{entry.path}: tensor {entry.name} has shape {list(entry.shape)}, which fits "
            f"{' and '.join(fitting) or 'none'} of the layouts of model type {fields.model_type} "
            f"({', '.join(candidates)}; see checkpoint/layouts.py)."
        )
    return fitting[0]


def _fits(kind: str, tensors: Tensors, fields: LayoutFields) -> bool:
    p = config_integer(fields.config, fields.model.size)
    d = config_integer(fields.config, "hidden_size|d_model")
    gate_up = tensors.get(("gate_up", "weight", 0))
    down = tensors.get(("down", "weight", 0))
    if down is not None:
        _require_rank(down, 3)
        p, d = (down.shape[2], down.shape[1]) if kind == "C" else down.shape[1:]
    if gate_up is None or p is None or d is None:
        return True
    same_count = down is None or down.shape[0] == gate_up.shape[0]
    return same_count and gate_up.shape[1:] == ((2 * p, d) if kind == "C" else (d, 2 * p))


def _stacked(layer: int, tensors: Tensors, kind: str) -> list[ExpertMatrix]:
    experts = []
    for (role, part, _), entry in tensors.items():
        if part != "weight":
            raise InputError(
                f"{entry.path}: tensor {entry.name} is a {part} without the tensor it belongs to."
            )
        _require_rank(entry, 3)
        count, lines, width = entry.shape
        for number in range(count):
            block = contiguous(entry, lines, width, number)
            regions = {"down": replace(block, transposed=kind != "C")}
            if role == "gate_up":
                regions = _halves(block, kind, entry)
            experts += [
                _dense(_expert(family, layer, number, own)) for family, own in regions.items()
            ]
    return experts


def _halves(block: StridedMatrix, kind: str, entry: TensorEntry) -> dict[str, StridedMatrix]:
    """Gate and up of the (2p, d) or (d, 2p) block of one expert."""
    both = block.major if kind == "C" else block.minor
    if both % 2:
        raise InputError(
            f"{entry.path}: tensor {entry.name} has shape {list(entry.shape)}: "
            f"{both} cannot be split into gate and up."
        )
    p = both // 2
    if kind == "C":
        return {"gate": block.row_block(0, p), "up": block.row_block(p, p)}
    block = replace(block, transposed=True)
    if kind == "D":
        return {"gate": block.row_block(0, p), "up": block.row_block(p, p)}
    gate = replace(block, minor_step=2, columns=p)
    return {"gate": gate, "up": replace(gate, minor_start=1)}


def _flat(layer: int, tensors: Tensors, fields: LayoutFields) -> list[ExpertMatrix]:
    count = config_integer(fields.config, fields.model.count)
    p = config_integer(fields.config, fields.model.size)
    experts = []
    for (family, _, _), entry in tensors.items():
        _require_rank(entry, 2)
        rows, d = entry.shape
        if not count or not p or count * p != rows:
            raise InputError(
                f"{entry.path}: tensor {entry.name} has {rows} rows; config.json says {count} "
                f"experts of size {p}. The config belongs to another model."
            )
        for number in range(count):
            own = replace(contiguous(entry, p, d, number), transposed=family == "down")
            experts.append(_dense(_expert(family, layer, number, own)))
    return experts


def _mxfp4(layer: int, tensors: Tensors) -> list[ExpertMatrix]:
    """Blocks (E, out, in / 32, 16) and scales (E, out, in / 32): rows are (out, in) already."""
    experts = []
    for (role, part, _), entry in tensors.items():
        if part != "blocks":
            _partner(tensors, role, "blocks", 0, entry)
            continue
        scales = _partner(tensors, role, "scales", 0, entry)
        _check_mxfp4(role, entry, scales)
        count, lines, groups, _ = entry.shape
        for number in range(count):
            blocks = contiguous(entry, lines, groups * MXFP4_GROUP // 2, number)
            pair = zip(
                _by_role(role, blocks),
                _by_role(role, contiguous(scales, lines, groups, number)),
                strict=True,
            )
            for (family, weight), (_, scale) in pair:
                shape = (weight.rows, groups * MXFP4_GROUP)
                storage = Storage(weight, scale)
                experts.append(ExpertMatrix(family, layer, number, False, "MXFP4", shape, storage))
    return experts


def _check_mxfp4(role: str, blocks: TensorEntry, scales: TensorEntry) -> None:
    _require_rank(blocks, 4)
    fits = blocks.shape == (*scales.shape, MXFP4_GROUP // 2)
    odd = role == "gate_up" and blocks.shape[1] % 2
    if not fits or odd or {blocks.dtype, scales.dtype} != {"U8"}:
        raise InputError(
            f"{blocks.path}: tensor {blocks.name} {blocks.dtype} {list(blocks.shape)} and its "
            f"scales {scales.dtype} {list(scales.shape)} are no mxfp4 blocks and scales."
        )


def _by_role(role: str, lines: StridedMatrix) -> list[tuple[str, StridedMatrix]]:
    """Down as it is; gate the even lines and up the odd ones."""
    if role == "down":
        return [(role, lines)]
    half = replace(lines, major_step=2, rows=lines.rows // 2)
    return [("gate", half), ("up", replace(half, major_start=1))]


def _shared(layer: int, tensors: Tensors, fields: LayoutFields) -> list[ExpertMatrix]:
    """The shared expert of a layer, whole, in separate matrices or with gate and up in one."""
    experts = []
    for (role, part, _), entry in tensors.items():
        if part == "scale_inv":
            continue
        _require_rank(entry, 2)
        if role != "gate_up":
            expert = _expert(role, layer, 0, contiguous(entry, *entry.shape), shared=True)
            experts.append(_linear(expert, tensors, fields))
            continue
        block = contiguous(entry, *entry.shape)
        for family, region in _halves(block, "C", entry).items():
            experts.append(_dense(_expert(family, layer, 0, region, shared=True)))
    return experts
