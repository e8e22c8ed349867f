"""What a dense export writes: every tensor of the source, in its own shard, name and layout.

The plan says of each tensor whether its bytes are copied, converted or dequantised, and where in
the new files every replaced expert belongs. The places come from running the layout registry over
the planned headers, so writing is the inverse of reading for every kind it knows.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from globe_stream.checkpoint.dequantize import FLOAT_DTYPES
from globe_stream.checkpoint.experts import ExpertMatrix, Key, key_of, split_shared, upright
from globe_stream.checkpoint.index import ExpertIndex
from globe_stream.checkpoint.inventory import take_inventory
from globe_stream.checkpoint.layouts import ModelType, config_integer
from globe_stream.checkpoint.strided import StridedMatrix
from globe_stream.errors import InputError
from globe_stream.io.dtypes import CONFIG_NAMES
from globe_stream.io.records import JsonObject
from globe_stream.io.safetensors import Header, TensorEntry
from globe_stream.io.safetensors_writer import PlannedFile, plan_file

_FP8 = "F8_E4M3"
_SCALE = "_scale_inv"
_BLOCKS, _SCALES = "_blocks", "_scales"


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: its place, where its content comes from, and how.

    `how` is "copy" (bytes), "cast" (another dtype), "fp8" or "mxfp4" (dequantise), or "replaced"
    (every element belongs to a replaced expert).
    """

    entry: TensorEntry
    source: TensorEntry
    scale: TensorEntry | None
    conversion: str


@dataclass(frozen=True)
class Shard:
    """One file to write; `places` are the replaced experts in it by key."""

    planned: PlannedFile
    tensors: tuple[Tensor, ...]
    places: dict[Key, StridedMatrix]


@dataclass(frozen=True)
class Rewrite:
    """The whole plan. `dequantised` (key to place) are unreplaced mxfp4 experts."""

    shards: tuple[Shard, ...]
    config: JsonObject
    dequantised: dict[Key, StridedMatrix]
    quantised: bool


def plan_rewrite(
    index: ExpertIndex, replaced: Iterable[ExpertMatrix], dtype: str, out: Path, chosen: bool
) -> Rewrite:
    """Plan the rewriting of `index` with the experts `replaced` stored as `dtype`.

    `chosen` says that the user asked for the dtype, which config.json then names. Raises InputError
    for a quantisation that cannot be undone.
    """
    members = list(replaced)
    quantised = "quantization_config" in index.config
    touched = {expert.storage.weight.tensor for expert in members}
    drafts = [_draft(header, index.headers, touched, dtype, quantised) for header in index.headers]
    planned = [
        _plan(index.name_of(header.path), header, draft, out)
        for header, draft in zip(index.headers, drafts, strict=True)
    ]
    config = _config(index.config, dtype, chosen, quantised)
    places = _places(planned, config, members, index.rule)
    keys = {key_of(expert) for expert in members}
    inside = {key: place for key, place in places.items() if key in keys}
    shards = tuple(_shard(one, draft, inside) for one, draft in zip(planned, drafts, strict=True))
    others = {key: place for key, place in places.items() if key not in keys} if quantised else {}
    return Rewrite(shards, config, others, quantised)


def expected_tensors(index: ExpertIndex) -> frozenset[str]:
    """Names of the tensors that a dense export of `index` must hold.

    All of the source's, but for the scales of quantised ones; mxfp4 blocks become one tensor.
    """
    quantised = "quantization_config" in index.config
    entries = {entry.name: entry for header in index.headers for entry in header.tensors}
    return frozenset(
        name.removesuffix(_BLOCKS) if entry.dtype == "U8" else name
        for name, entry in entries.items()
        if not (quantised and _is_scale(name, entries))
    )


@dataclass(frozen=True)
class _Draft:
    name: str
    dtype: str
    shape: tuple[int, ...]
    source: TensorEntry
    scale: TensorEntry | None
    conversion: str


def _draft(
    header: Header, headers: tuple[Header, ...], touched: set[str], dtype: str, quantised: bool
) -> list[_Draft]:
    entries = {entry.name: entry for one in headers for entry in one.tensors}
    drafts = []
    for entry in header.tensors:
        if quantised and _is_scale(entry.name, entries):
            continue
        drafts.append(_one(entry, entries, entry.name in touched, dtype))
    return drafts


def _is_scale(name: str, entries: dict[str, TensorEntry]) -> bool:
    if name.endswith(_SCALE):
        return name.removesuffix(_SCALE) in entries
    return name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in entries


def _one(entry: TensorEntry, entries: dict[str, TensorEntry], touched: bool, dtype: str) -> _Draft:
    if entry.name.endswith(_BLOCKS) and entry.dtype == "U8":
        scale = entries.get(entry.name.removesuffix(_BLOCKS) + _SCALES)
        count, rows, groups, width = entry.shape
        shape = (count, groups * width * 2, rows)
        return _Draft(entry.name.removesuffix(_BLOCKS), dtype, shape, entry, scale, "mxfp4")
    if entry.dtype == _FP8:
        scale = entries.get(entry.name + _SCALE)
        if scale is None or len(entry.shape) != 2:
            raise InputError(
                f"{entry.path}: tensor {entry.name} is fp8 without block scales "
                "beside it: this quantisation cannot be written out densely"
            )
        return _Draft(entry.name, dtype, entry.shape, entry, scale, "fp8")
    if touched and entry.dtype not in FLOAT_DTYPES:
        raise InputError(
            f"{entry.path}: tensor {entry.name} ({entry.dtype}) is quantised in a way that cannot "
            "be written out densely. Export the factors, or start from a checkpoint in bf16"
        )
    if touched and entry.dtype != dtype:
        return _Draft(entry.name, dtype, entry.shape, entry, None, "cast")
    return _Draft(entry.name, entry.dtype, entry.shape, entry, None, "copy")


def _plan(name: str, header: Header, drafts: list[_Draft], out: Path) -> PlannedFile:
    tensors = [(draft.name, draft.dtype, draft.shape) for draft in drafts]
    return plan_file(out / name, tensors, header.metadata)


def _config(config: JsonObject, dtype: str, chosen: bool, quantised: bool) -> JsonObject:
    """config.json without quantisation, naming the dtype where that changed."""
    kept = copy.deepcopy(dict(config))
    for part in (kept, kept.get("text_config")):
        if not isinstance(part, dict):
            continue
        part.pop("quantization_config", None)
        for field in ("dtype", "torch_dtype"):
            if field in part and (chosen or quantised):
                part[field] = CONFIG_NAMES[dtype]
    return kept


def _places(
    planned: list[PlannedFile],
    config: JsonObject,
    members: list[ExpertMatrix],
    rule: ModelType | None,
) -> dict[Key, StridedMatrix]:
    """Where every expert lies in the planned files, by key; shared ones as the blocks taken."""
    inventory = take_inventory(
        [entry for one in planned for entry in one.entries],
        config,
        _beyond(config, members),
        rule,
    )
    experts = [expert for family in inventory.experts.values() for expert in family]
    if any(expert.shared for expert in members):
        sizes = {expert.family: expert.shape[0] for expert in members}
        experts += [
            block
            for family, shared in inventory.shared.items()
            for expert in shared
            if family in sizes
            for block in split_shared(expert, sizes[family])
        ]
    replaced = {key_of(expert) for expert in members}
    return {
        key_of(expert): (upright(expert) if key_of(expert) in replaced else expert).storage.weight
        for expert in experts
    }


def _beyond(config: JsonObject, members: list[ExpertMatrix]) -> bool:
    """Whether experts of multi-token-prediction layers are among `members`."""
    layers = config_integer(config, "num_hidden_layers|n_layers")
    return layers is not None and max(expert.layer for expert in members) >= layers


def _shard(planned: PlannedFile, drafts: list[_Draft], places: dict[Key, StridedMatrix]) -> Shard:
    own = {key: place for key, place in places.items() if place.path == planned.path}
    covered: dict[str, int] = {}
    for place in own.values():
        covered[place.tensor] = covered.get(place.tensor, 0) + place.nbytes
    tensors = []
    for draft, entry in zip(drafts, planned.entries, strict=True):
        conversion = "replaced" if covered.get(entry.name) == entry.nbytes else draft.conversion
        tensors.append(Tensor(entry, draft.source, draft.scale, conversion))
    return Shard(planned, tuple(tensors), own)
