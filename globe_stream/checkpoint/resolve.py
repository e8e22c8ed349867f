"""One layer's expert tensors to `ExpertMatrix`s, form by form."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from globe_stream.checkpoint.dequantize import FLOAT_DTYPES, per_item
from globe_stream.checkpoint.experts import ExpertMatrix, cut_rows, family_name, shape_of
from globe_stream.checkpoint.layouts import ModelType, UnknownLayout, config_integer
from globe_stream.checkpoint.names import TensorName
from globe_stream.checkpoint.quantized import (
    WEIGHTS,
    Parts,
    StoredMatrix,
    require_rank,
    stored_matrix,
)
from globe_stream.checkpoint.strided import Storage, StridedMatrix
from globe_stream.errors import InputError
from globe_stream.io.records import JsonObject
from globe_stream.io.safetensors import TensorEntry

Tensors = dict[tuple[str, str, int], TensorEntry]

_ORDER = ("gate_up", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class LayoutFields:
    """What the model type and the config add to the names.

    `config` is that of the experts' `section`, `whole` the model's.
    """

    model_type: str
    model: ModelType
    config: JsonObject
    whole: JsonObject
    section: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """The expert tensors of one layer and module, by (role, part, number)."""

    name: TensorName
    layer: int
    tensors: Tensors
    fields: LayoutFields

    @property
    def first(self) -> TensorEntry:
        """One of the tensors, for messages."""
        return next(iter(self.tensors.values()))

    def matrices(self) -> Iterator[tuple[str, int, Parts]]:
        """Role, number and parts of every stored matrix."""
        found: dict[tuple[str, int], dict[str, TensorEntry]] = {}
        for (role, part, number), entry in self.tensors.items():
            found.setdefault((role, number), {})[part] = entry
        for (role, number), parts in found.items():
            yield role, number, parts

    def weight(self, role: str, number: int = 0) -> TensorEntry | None:
        """The tensor with the elements of a role."""
        keys = [(role, part, number) for part in WEIGHTS]
        return next((self.tensors[key] for key in keys if key in self.tensors), None)

    def expert(self, role: str, number: int, dtype: str, at: Storage) -> ExpertMatrix:
        """The matrix stored as `dtype` at `at`."""
        family = family_name(role, self.fields.section)
        shared = self.name.form == "shared"
        shape = shape_of(at, dtype)
        return ExpertMatrix(family, self.layer, number, shared, dtype, shape, at)


def experts_of(group: Group) -> tuple[list[ExpertMatrix], str]:
    """The experts in a group's tensors, and the rule that says so ("" for shared ones).

    Raises InputError, naming the tensor, for one that does not fit the rule.
    """
    if group.name.form == "shared":
        return list(_shared(group)), ""
    if group.name.form == "flat":
        return list(_flat(group)), f"F ({_pattern(group)})"
    if group.name.form == "per_expert":
        return list(_per_expert(group)), f"{group.name.kind} ({_pattern(group)})"
    kind = stacked_kind(group)
    return list(_stacked(group, kind)), f"{kind} ({_pattern(group)})"


def _pattern(group: Group) -> str:
    """The names of the tensors in one: "model.layers.{L}.mlp.experts.{gate_up,down}_proj"."""
    name = group.name
    place = name.group.replace(f".{name.layer}.", ".{L}.", 1)
    ordered = sorted(group.tensors, key=lambda key: _ORDER.index(key[0]))
    tails = [group.tensors[key].name.removeprefix(f"{name.group}.") for key in ordered]
    if name.form == "per_expert":
        place, tails = f"{place}.{{E}}", [tail.split(".", 1)[1] for tail in tails]
    return f"{place}.{_joined(dict.fromkeys(tails))}"


def _joined(words: Iterable[str]) -> str:
    """Words that end alike in one: "{gate,up}_proj"."""
    words = list(words)
    if len(words) == 1:
        return words[0]
    marks = [place for place, letter in enumerate(words[0]) if letter in "._"]
    common = [place for place in marks if all(word.endswith(words[0][place:]) for word in words)]
    ending = words[0][common[0] :] if common else ""
    return "{" + ",".join(word.removesuffix(ending) for word in words) + "}" + ending


def _per_expert(group: Group) -> Iterator[ExpertMatrix]:
    for role, number, parts in group.matrices():
        stored = stored_matrix(parts, group.fields.whole)
        expert = group.expert(role, number, stored.dtype, stored.storage())
        _check_transposes(expert, group.weight("up", number))
        yield expert


def _check_transposes(expert: ExpertMatrix, up: TensorEntry | None) -> None:
    """Up, gate and the transpose of down must have one shape, as far as they are stored alike."""
    own = expert.storage.weight
    if up is None or up.dtype != own.dtype or len(up.shape) != 2:
        return
    shape = (up.shape[0], up.shape[1] * per_item(expert.dtype))
    expected = shape[::-1] if expert.role == "down" else shape
    if expert.shape != expected:
        raise InputError(
            f"{own.path}: tensor {own.tensor} has shape {list(expert.shape)}, "
            f"{list(expected)} was expected beside {up.name}."
        )


def stacked_kind(group: Group) -> str:
    """The one of the model type's stacked kinds whose names and shapes are those of the tensors.

    With gate_up and down together the shapes tell C from D even for p = d and 2p = d; D and E look
    alike, and only the model type decides. G and H have names of their own, and so has mxfp4.
    """
    if any(part in ("blocks", "scales") for _, part, _ in group.tensors):
        return "E mxfp4"
    entry = group.weight("gate_up") or group.weight("up") or group.weight("gate")
    entry = entry or group.weight("down") or group.first
    require_rank(entry, 3)
    candidates = [kind for kind in group.fields.model.kinds if kind in _named_kinds(group)]
    if not candidates:
        raise UnknownLayout(
            f"{entry.path}: tensor {entry.name} {list(entry.shape)} is a stack of experts whose "
            f"orientation is not known for model type {group.fields.model_type}, and no shape "
            "proves it."
        )
    fitting = [kind for kind in candidates if _fits(kind, group)]
    if len(fitting) != 1:
        raise InputError(
            f"{entry.path}: tensor {entry.name} has shape {list(entry.shape)}, which fits "
            f"{' and '.join(fitting) or 'none'} of the layouts of model type "
            f"{group.fields.model_type} ({', '.join(candidates)}; see docs/layouts.md)."
        )
    return fitting[0]


def _named_kinds(group: Group) -> str:
    """The stacked kinds whose tensors have the roles and names of this group's."""
    if group.weight("up") or group.weight("gate"):
        return "G"
    if group.name.kind:
        return group.name.kind
    both = group.weight("gate_up")
    if both is None:
        return "CDEG"
    return "H" if "w13_weight" in both.name else "CDE"


def _fits(kind: str, group: Group) -> bool:
    p = config_integer(group.fields.config, group.fields.model.size)
    d = config_integer(group.fields.config, "hidden_size|d_model")
    first = group.weight("up") if kind == "G" else group.weight("gate_up")
    down = group.weight("down")
    straight = kind in "CGH"
    if down is not None:
        require_rank(down, 3)
        p, d = (down.shape[2], down.shape[1]) if straight else down.shape[1:]
    if first is None or p is None or d is None:
        return True
    height = p if kind == "G" else 2 * p
    padding = 0 if down is None else first.shape[0] - down.shape[0]
    return padding in (0, _padding(group)) and first.shape[1:] == (
        (height, d) if straight else (d, height)
    )


def _padding(group: Group) -> int:
    """Stacked matrices at the end that belong to no expert."""
    field = group.fields.model.padding
    return (config_integer(group.fields.config, field) or 0) if field else 0


def _stacked(group: Group, kind: str) -> Iterator[ExpertMatrix]:
    down = group.weight("down")
    for role, _, parts in group.matrices():
        stored = stored_matrix(parts, group.fields.whole, lead=1)
        if kind in ("D", "E") and stored.dtype not in FLOAT_DTYPES:
            raise InputError(
                f"{stored.entry.path}: tensor {stored.entry.name} ({stored.dtype}) is a transposed "
                "stack of quantised experts, which is unsupported here."
            )
        count = stored.entry.shape[0]
        if down is not None and 0 < count - down.shape[0] == _padding(group):
            count = down.shape[0]
        for number in range(count):
            yield from _of_stack(group, kind, role, number, stored)


def _of_stack(
    group: Group, kind: str, role: str, number: int, stored: StoredMatrix
) -> Iterator[ExpertMatrix]:
    block = stored.storage(number)
    pieces = {role: block}
    if role == "gate_up":
        pieces = _halves(block, kind, stored)
    elif kind in ("D", "E"):
        pieces = {role: replace(block, weight=replace(block.weight, transposed=True))}
    for family, at in pieces.items():
        yield group.expert(family, number, stored.dtype, at)


def _halves(block: Storage, kind: str, stored: StoredMatrix) -> dict[str, Storage]:
    """Gate and up of the (2p, d) or (d, 2p) block of one expert."""
    both = block.weight.minor if kind in ("D", "E") else block.weight.major
    if both % 2:
        raise InputError(
            f"{stored.entry.path}: tensor {stored.entry.name} has shape "
            f"{list(stored.entry.shape)}: {both} cannot be split into gate and up."
        )
    p = both // 2
    if kind in ("H", "E mxfp4"):
        return {"gate": _every_second(block, 0, stored), "up": _every_second(block, 1, stored)}
    if kind == "E":
        weight = replace(block.weight, minor_step=2, columns=p, transposed=True)
        up = replace(weight, minor_start=1)
        return {"gate": replace(block, weight=weight), "up": replace(block, weight=up)}
    whole = replace(block, weight=replace(block.weight, transposed=kind == "D"))
    return {"gate": cut_rows(whole, 0, p), "up": cut_rows(whole, p, p)}


def _every_second(block: Storage, first: int, stored: StoredMatrix) -> Storage:
    """The even or the odd rows, and of their scales those of the same rows."""

    def rows(matrix: StridedMatrix) -> StridedMatrix:
        return replace(matrix, major_start=first, major_step=2, rows=matrix.rows // 2)

    if block.scale is None:
        return replace(block, weight=rows(block.weight))
    if block.block[0] == 1:
        return replace(block, weight=rows(block.weight), scale=rows(block.scale))
    if stored.scale_shape == (1, 1):
        return replace(block, weight=rows(block.weight))
    raise InputError(
        f"{stored.entry.path}: tensor {stored.entry.name} interleaves gate and up within blocks of "
        f"{block.block[0]} rows that share a scale, which is unsupported here."
    )


def _flat(group: Group) -> Iterator[ExpertMatrix]:
    count = config_integer(group.fields.config, group.fields.model.count)
    p = config_integer(group.fields.config, group.fields.model.size)
    for role, _, parts in group.matrices():
        stored = stored_matrix(parts, group.fields.whole)
        entry = stored.entry
        if stored.dtype not in FLOAT_DTYPES:
            raise InputError(
                f"{entry.path}: tensor {entry.name} ({stored.dtype}) is a flat stack of quantised "
                "experts, which is unsupported here."
            )
        if not count or not p or count * p != stored.rows:
            raise InputError(
                f"{entry.path}: tensor {entry.name} has {stored.rows} rows; config.json says "
                f"{count} experts of size {p}. The config belongs to another model."
            )
        one = replace(stored, rows=p)
        for number in range(count):
            weight = replace(one.storage(number).weight, transposed=role == "down")
            yield group.expert(role, number, stored.dtype, Storage(weight))


def _shared(group: Group) -> Iterator[ExpertMatrix]:
    """The shared experts of a layer, whole: one, or a stack of several.

    Their matrices are separate, or gate and up are one above the other, or interleaved.
    """
    for role, _, parts in group.matrices():
        entry = next(iter(parts.values()))
        lead = int(len(entry.shape) == 3)
        stored = stored_matrix(parts, group.fields.whole, lead)
        kind = "H" if "w13_weight" in stored.entry.name else "C"
        for number in range(stored.entry.shape[0] if lead else 1):
            yield from _of_stack(group, kind, role, number, stored)
