"""From the headers of a checkpoint to its experts: every rule of `layouts` applied and checked."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from globe_stream.checkpoint import resolve
from globe_stream.checkpoint.advice import how_to_add
from globe_stream.checkpoint.experts import ExpertMatrix, family_name
from globe_stream.checkpoint.layouts import (
    ROLES,
    UNKNOWN,
    ModelType,
    UnknownLayout,
    config_integer,
    section_config,
)
from globe_stream.checkpoint.model_types import MODEL_TYPES, REFUSED, model_type_of
from globe_stream.checkpoint.names import (
    NameParser,
    TensorName,
    is_extra,
    looks_like_expert,
    parser_with,
)
from globe_stream.errors import InputError
from globe_stream.io.records import JsonObject
from globe_stream.io.safetensors import TensorEntry

_LAYERS = "num_hidden_layers|n_layers|depth"


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

    groups: dict[tuple[str, str, str], resolve.Tensors] = field(
        default_factory=lambda: defaultdict(dict)
    )
    names: dict[tuple[str, str, str], TensorName] = field(default_factory=dict)
    extra: set[tuple[bool, int]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Model:
    """The model type, its rule, and the config of every section."""

    name: str
    rule: ModelType
    config: JsonObject

    def fields(self, section: str) -> resolve.LayoutFields:
        part = section_config(self.config, self.rule, section)
        return resolve.LayoutFields(self.name, self.rule, part, self.config, section)

    def layers(self, section: str) -> int | None:
        return config_integer(section_config(self.config, self.rule, section), _LAYERS)

    def count(self, section: str) -> int | None:
        position = 1 if section and self.rule.split else 0
        part = section_config(self.config, self.rule, section)
        return config_integer(part, self.rule.count, position)


def take_inventory(
    entries: Sequence[TensorEntry],
    config: JsonObject,
    include_mtp: bool,
    rule: ModelType | None = None,
) -> Inventory:
    """All experts among `entries`, by the model type's rule or by `rule`.

    Raises InputError, naming the tensor, for an expert tensor that matches no rule, one whose shape
    contradicts its layout, a hole in the numbering, and a checkpoint without routed experts.
    """
    try:
        return _take_inventory(entries, config, include_mtp, rule)
    except UnknownLayout as error:
        raise UnknownLayout(f"{error.message} {how_to_add(entries)}") from error


def _take_inventory(
    entries: Sequence[TensorEntry],
    config: JsonObject,
    include_mtp: bool,
    given: ModelType | None,
) -> Inventory:
    name = model_type_of(config)
    refused = next(
        (kind for kind in (str(config.get("model_type")), name) if kind in REFUSED), None
    )
    if refused is not None and given is None:
        raise InputError(f"model type {refused} cannot be read: {REFUSED[refused]}.")
    model = _Model(name, given or MODEL_TYPES.get(name, UNKNOWN), config)
    found = _sort_names(entries, model, parser_with(given), include_mtp)
    routed: list[ExpertMatrix] = []
    shared: list[ExpertMatrix] = []
    rules: set[str] = set()
    for key, tensors in found.groups.items():
        own = found.names[key]
        layer = own.layer + (model.layers(own.section) or 0 if own.extra else 0)
        group = resolve.Group(own, layer, tensors, model.fields(own.section))
        experts, rule = resolve.experts_of(group)
        (shared if own.form == "shared" else routed).extend(experts)
        rules |= {rule} - {""}
    if not routed:
        raise UnknownLayout(
            f"the model (type {name}) has no routed experts: no tensor is named like one."
        )
    families = _by_family(routed)
    _check_complete(families, model)
    return Inventory(families, _by_family(shared), ", ".join(sorted(rules)), len(found.extra))


def _sort_names(
    entries: Iterable[TensorEntry], model: _Model, parser: NameParser, include_mtp: bool
) -> _Found:
    found = _Found()
    for entry in entries:
        name = parser.parse(entry.name)
        if name is None:
            extra = is_extra(entry.name)
            if looks_like_expert(entry.name, entry.shape) and (include_mtp or not extra):
                raise UnknownLayout(
                    f"{entry.path}: tensor {entry.name} ({entry.dtype} {list(entry.shape)}) looks "
                    "like an expert's weights and matches no known layout."
                )
            continue
        if entry.nbytes == 0:
            raise InputError(
                f"{entry.path}: tensor {entry.name} {list(entry.shape)} is empty. "
                "Download the file again."
            )
        layers = model.layers(name.section)
        extra = name.extra or (layers is not None and name.layer >= layers)
        if extra and not include_mtp:
            found.extra.add((name.extra, name.layer))
            continue
        name = _in_section(name, model)
        if name is None:
            continue
        key = (name.form, name.group, name.section)
        found.names[key] = name
        other = found.groups[key].setdefault((name.role, name.part, name.expert), entry)
        if other is not entry:
            raise InputError(
                f"{entry.path}: tensor {entry.name} is the same matrix as {other.name}. "
                "The checkpoint mixes two layouts."
            )
    return found


def _in_section(name: TensorName, model: _Model) -> TensorName | None:
    """The name with its own section's number; None for a matrix without content."""
    count = model.count(name.section)
    if name.form != "per_expert" or count is None or name.expert < count:
        return name
    if model.rule.split and not name.section:
        section = model.rule.sections[0][0]
        return replace(name, section=section, expert=name.expert - count)
    padding = config_integer(model.config, model.rule.padding) if model.rule.padding else None
    return None if name.expert < count + (padding or 0) else name


def _by_family(experts: list[ExpertMatrix]) -> dict[str, tuple[ExpertMatrix, ...]]:
    sections = sorted({expert.section for expert in experts} | {""})
    names = [family_name(role, section) for section in sections for role in ROLES]
    families: dict[str, list[ExpertMatrix]] = {family: [] for family in names}
    for expert in experts:
        families[expert.family].append(expert)
    return {
        family: tuple(sorted(members, key=lambda expert: expert.order))
        for family, members in families.items()
        if members
    }


def _check_complete(families: dict[str, tuple[ExpertMatrix, ...]], model: _Model) -> None:
    for section in dict.fromkeys(members[0].section for members in families.values()):
        own = {
            members[0].role: members
            for members in families.values()
            if members[0].section == section
        }
        _check_section(own, section, model)


def _check_section(own: dict[str, tuple[ExpertMatrix, ...]], section: str, model: _Model) -> None:
    """The matrices of one section, by role: one shape each, and none missing."""
    numbers: dict[str, dict[int, list[int]]] = {}
    for role, members in own.items():
        by_layer = numbers.setdefault(role, defaultdict(list))
        for expert in members:
            if expert.shape != members[0].shape:
                raise InputError(
                    f"{expert.where} has shape {expert.shape}, the other experts' {expert.family} "
                    f"matrices have {members[0].shape}: one bank needs them all alike. "
                    "Select layers."
                )
            by_layer[expert.layer].append(expert.expert)
    everywhere = {layer for by_layer in numbers.values() for layer in by_layer}
    needed = ("up", "gate") if model.rule.gated else ("up",)
    for role in (role for role in ROLES if role in needed or role in numbers):
        for layer in sorted(everywhere):
            present = numbers.get(role, {}).get(layer, [])
            _check_numbers(family_name(role, section), layer, present, model.count(section))


def _check_numbers(family: str, layer: int, present: list[int], count: int | None) -> None:
    total = count if count is not None else max(present, default=0) + 1
    if len(present) == total and all(n == k for k, n in enumerate(present)):
        return
    twice = next((n for n, times in Counter(present).items() if times > 1), None)
    if twice is not None:
        raise InputError(f"the {family} matrix of layer {layer}, expert {twice} is stored twice.")
    first = next((k for k, n in enumerate(present) if n != k), len(present))
    what = f"expert {first} is missing" if first < total else f"there is an expert {present[-1]}"
    raise InputError(
        f"{family} of layer {layer}: {what}, {total} experts a layer were expected. "
        "The checkpoint is incomplete or its config.json belongs to another."
    )
