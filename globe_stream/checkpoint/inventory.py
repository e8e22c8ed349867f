"""From the headers of a checkpoint to its experts: every rule of `layouts` applied and checked."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from globe_stream.checkpoint import resolve
from globe_stream.checkpoint.experts import FAMILIES, ExpertMatrix
from globe_stream.checkpoint.layouts import (
    MODEL_TYPES,
    UNKNOWN,
    TensorName,
    config_integer,
    is_extra,
    looks_like_expert,
    model_type_of,
    parse_name,
)
from globe_stream.errors import InputError
from globe_stream.io.safetensors import TensorEntry


@dataclass(slots=True)
class Inventory:
    """Routed and shared experts by family, sorted by layer and number, and the rules that matched.

    `extra_layers` counts the layers for multi-token prediction that were left out.
    """

    experts: dict[str, tuple[ExpertMatrix, ...]]
    shared: dict[str, tuple[ExpertMatrix, ...]]
    layout: str
    extra_layers: int


@dataclass(slots=True)
class _Found:
    """Expert tensors by group (prefix, layer and module) and what was left out."""

    groups: dict[tuple[str, str], dict[tuple[str, str, int], TensorEntry]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    names: dict[tuple[str, str], TensorName] = field(default_factory=dict)
    extra: set[tuple[bool, int]] = field(default_factory=set)


def take_inventory(
    entries: Iterable[TensorEntry], config: dict[str, Any], include_mtp: bool
) -> Inventory:
    """All experts among `entries`.

    Raises InputError, naming the tensor, for an expert tensor that matches no rule, one whose shape
    contradicts its layout, a hole in the numbering, and a checkpoint without routed experts.
    """
    model_type = model_type_of(config)
    layers = config_integer(config, "num_hidden_layers|n_layers")
    found = _sort_names(entries, layers, include_mtp)
    fields = resolve.LayoutFields(model_type, MODEL_TYPES.get(model_type, UNKNOWN), config)
    routed: list[ExpertMatrix] = []
    shared: list[ExpertMatrix] = []
    rules: set[str] = set()
    for key, tensors in found.groups.items():
        name = found.names[key]
        layer = name.layer + (layers or 0 if name.extra else 0)
        experts, rule = resolve.experts_of(name, layer, tensors, fields)
        (shared if name.form == "shared" else routed).extend(experts)
        if name.form != "shared":
            rules.add(rule)
    if not routed:
        raise InputError(
            f"the model (type {model_type}) has no routed experts: no tensor is named like one. "
            "Only mixture-of-experts checkpoints can be used."
        )
    families = _by_family(routed)
    _check_complete(families, config_integer(config, fields.model.count))
    return Inventory(families, _by_family(shared), ", ".join(sorted(rules)), len(found.extra))


def _sort_names(entries: Iterable[TensorEntry], layers: int | None, include_mtp: bool) -> _Found:
    found = _Found()
    for entry in entries:
        name = parse_name(entry.name)
        if name is None:
            extra = is_extra(entry.name)
            if looks_like_expert(entry.name, entry.shape) and (include_mtp or not extra):
                raise InputError(
                    f"{entry.path}: tensor {entry.name} ({entry.dtype} {list(entry.shape)}) looks "
                    "like an expert's weights and matches no known layout. Report the model type; "
                    "adding it is one entry in checkpoint/layouts.py."
                )
            continue
        extra = name.extra or (layers is not None and name.layer >= layers)
        if extra and not include_mtp:
            found.extra.add((name.extra, name.layer))
            continue
        key = (name.form, name.group)
        found.names[key] = name
        other = found.groups[key].setdefault((name.role, name.part, name.expert), entry)
        if other is not entry:
            raise InputError(
                f"{entry.path}: tensor {entry.name} is the same matrix as {other.name}. "
                "The checkpoint mixes two layouts."
            )
    return found


def _by_family(experts: list[ExpertMatrix]) -> dict[str, tuple[ExpertMatrix, ...]]:
    families: dict[str, list[ExpertMatrix]] = {family: [] for family in FAMILIES}
    for expert in experts:
        families[expert.family].append(expert)
    return {
        family: tuple(sorted(members, key=lambda expert: expert.order))
        for family, members in families.items()
        if members
    }


def _check_complete(families: dict[str, tuple[ExpertMatrix, ...]], count: int | None) -> None:
    shapes: dict[str, tuple[int, int]] = {}
    numbers: dict[str, dict[int, list[int]]] = {}
    for family, members in families.items():
        by_layer = numbers.setdefault(family, defaultdict(list))
        for expert in members:
            shape = shapes.setdefault(family, expert.shape)
            if expert.shape != shape:
                raise InputError(
                    f"{expert.where} has shape {expert.shape}, the other experts' {family} "
                    f"matrices have {shape}: one bank needs them all alike. Select layers."
                )
            by_layer[expert.layer].append(expert.expert)
    everywhere = {layer for by_layer in numbers.values() for layer in by_layer}
    for family in (f for f in ("up", "gate", "down") if f != "down" or f in numbers):
        for layer in sorted(everywhere):
            present = numbers.get(family, {}).get(layer, [])
            _check_numbers(family, layer, present, count)


def _check_numbers(family: str, layer: int, present: list[int], count: int | None) -> None:
    total = count if count is not None else max(present, default=0) + 1
    if present == list(range(total)):
        return
    if len(set(present)) < len(present):
        twice = next(n for n in present if present.count(n) > 1)
        raise InputError(f"the {family} matrix of layer {layer}, expert {twice} is stored twice.")
    missing = sorted(set(range(total)) - set(present))
    what = f"expert {missing[0]} is missing" if missing else f"there is an expert {present[-1]}"
    raise InputError(
        f"{family} of layer {layer}: {what}, {total} experts a layer were expected. "
        "The checkpoint is incomplete or its config.json belongs to another."
    )
