"""What the names of tensors say: which are experts', of which layer, and in which form.

The patterns are made from the modules of every known model type, so a name means the same whatever
the type; a rule given by the user adds its own modules.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from globe_stream.checkpoint.layouts import ModelType
from globe_stream.checkpoint.model_types import MODEL_TYPES


@dataclass(frozen=True, slots=True)
class TensorName:
    """What the name of an expert tensor says.

    `form` is "per_expert" (A, B), "stacked" (C, D, E, G or H), "linear" (always C), "flat" (F) or
    "shared"; `role` is "gate", "up", "down" or "gate_up"; `part` is "weight" or what belongs to
    it (see `PARTS`). `kind` is A, B, C, F or empty where the name does not tell.
    `group` is the name up to and including the layer's number and module. `section` is empty for
    the main experts, else the name of another set of them.
    """

    form: str
    kind: str
    role: str
    part: str
    projection: str
    group: str
    layer: int
    expert: int
    extra: bool
    section: str


_ROLES = {
    "gate_proj": "gate",
    "linear_gate": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
    "v1": "up",
    "fc1": "gate",
    "fc3": "up",
    "fc2": "down",
}
_STACKED_ROLES = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "gate_up_proj": "gate_up",
    "input_linear": "gate_up",
    "w13_weight": "gate_up",
    "shared_w13_weight": "gate_up",
    "fc1": "gate_up",
    "fc2": "down",
    "output_linear": "down",
    "w2_weight": "down",
    "shared_w2_weight": "down",
}
PARTS = {
    "": "weight",
    ".weight": "weight",
    ".weight_scale_inv": "scale_inv",
    "_scale_inv": "scale_inv",
    ".weight_scale": "scale",
    "_scale": "scale",
    ".scale": "scale",
    ".weight_packed": "packed",
    ".weight_shape": "shape",
    ".weight_global_scale": "global_scale",
    ".weight_scale_2": "scale_2",
    ".weight_zero_point": "zero_point",
    ".weight_g_idx": "order",
    "_blocks": "blocks",
    "_scales": "scales",
}
"""How a name ends after its projection, and the part of the stored matrix that this is."""

_SECTIONS = {
    "talker": "talker",
    "vision_moe": "vision",
    "vision_encoder": "vision",
    "vision_tower": "vision",
    "visual": "vision",
}
_MODULES_OF_MLP = {"mlp", "moe", "ffn", "feed_forward", "block_sparse_moe"}
_NOT_MATRICES = re.compile(
    r"(_bias|\.bias|\.input_scale|\.input_global_scale|\.input_zero_point|\.output_scale)$"
)
_LAYER = (
    r"^(?P<group>(?:.*\.)?(?:layers|blocks|mtp)\.(?P<layer>\d+)\.(?:{modules}))\."
    r"{expert}(?P<projection>{projections})(?P<part>{parts})$"
)
_LINEAR = ("input_linear", "output_linear")


def _alternatives(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word)))


class NameParser:
    """Reads names by the rules of `types`; `own` is a rule whose projections have other names."""

    def __init__(self, types: tuple[ModelType, ...], own: ModelType | None = None) -> None:
        extra = dict(own.names) if own else {}
        self._roles = {
            "per_expert": _ROLES | extra,
            "stacked": _STACKED_ROLES | extra,
            "linear": {name: _STACKED_ROLES[name] for name in _LINEAR},
            "flat": {name: _ROLES[name] for name in ("w1", "v1", "w2")},
            "shared": _ROLES | _STACKED_ROLES | extra,
        }
        routed = {m for rule in types for m in rule.modules if _holds_experts(rule, m)}
        routed |= set(own.modules) if own else set()
        modules = {
            "shared": {module for rule in types for module in rule.shared_modules},
            "flat": {module for rule in types if "F" in rule.kinds for module in rule.modules},
            "per_expert": routed,
            "stacked": routed,
            "linear": {module for rule in types for module in rule.modules} - routed,
        }
        self._patterns = {
            form: re.compile(
                _LAYER.format(
                    modules=_alternatives(modules[form]),
                    expert=r"(?P<expert>\d+)\." if form == "per_expert" else "",
                    projections=_alternatives(self._roles[form]),
                    parts=_alternatives(PARTS),
                )
            )
            for form in self._roles
        }

    def parse(self, name: str) -> TensorName | None:
        """What `name` says if it is a tensor of a routed or shared expert, else None."""
        for form, pattern in self._patterns.items():
            match = pattern.match(name)
            if match:
                return _tensor_name(form, match, self._roles[form])
        return None


def _holds_experts(rule: ModelType, module: str) -> bool:
    """Whether a module's matrices are experts' whatever their names are."""
    return module.endswith("experts") or "G" in rule.kinds


@lru_cache(maxsize=8)
def parser_with(rule: ModelType | None = None) -> NameParser:
    """The parser of all known types, and of the user's `rule`."""
    return NameParser((*MODEL_TYPES.values(), *((rule,) if rule else ())), rule)


def _tensor_name(form: str, match: re.Match[str], roles: dict[str, str]) -> TensorName:
    fields = match.groupdict()
    projection = fields["projection"]
    words = fields["group"].split(".")
    return TensorName(
        form=form,
        kind=_kind(form, projection),
        role=roles[projection],
        part=PARTS[fields["part"]],
        projection=projection,
        group=fields["group"],
        layer=int(fields["layer"]),
        expert=int(fields.get("expert") or 0),
        extra=is_extra(fields["group"]),
        section=next((_SECTIONS[word] for word in words if word in _SECTIONS), ""),
    )


def _kind(form: str, projection: str) -> str:
    if form == "per_expert":
        return "B" if projection.startswith("w") else "A"
    return {"linear": "C", "flat": "F"}.get(form, "")


def is_extra(prefix: str) -> bool:
    """Whether a name, or the part before its layer, belongs to multi-token prediction."""
    return any(part.startswith(("mtp", "nextn")) for part in prefix.split("."))


def looks_like_expert(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor that no rule matches would be an expert's weights left behind.

    True for every matrix under a component `experts` and for every three-dimensional tensor of an
    MLP module; biases, routers, norms and the experts of attention layers are neither.
    """
    parts = name.split(".")
    if _NOT_MATRICES.search(name) or any("attention" in part or "attn" in part for part in parts):
        return False
    if "experts" in parts:
        return len(shape) > 1
    return len(shape) == 3 and not _MODULES_OF_MLP.isdisjoint(parts)
