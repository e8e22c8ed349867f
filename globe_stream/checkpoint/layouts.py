"""What the layouts of experts on disk are: kinds, and a model type's rule.

Kinds (E experts a layer, p expert intermediate size, d hidden size)
    A  per expert: gate_proj, up_proj (p, d), down_proj (d, p)
    B  per expert: w1 = gate, w3 = up (p, d), w2 = down (d, p)
    C  stacked: gate_up (E, 2p, d), gate = rows :p, up = rows p:; down (E, d, p)
    D  stacked, transposed: gate_up (E, d, 2p), gate = columns :p, up = columns p:; down (E, p, d)
    E  as D, interleaved: gate = columns 0::2, up = columns 1::2
    F  flat: w1 = gate, v1 = up, w2 = down, all (E p, d); w2 holds the transpose
    G  stacked apart: gate, up (E, p, d), down (E, d, p)
    H  as C, interleaved: gate = rows 0::2, up = rows 1::2

Names decide which tensors are experts; the model type decides the orientation of stacked ones,
which their shapes cannot always tell. Source: docs/layouts.md.
"""

from dataclasses import dataclass

from globe_stream.errors import InputError
from globe_stream.io.records import JsonObject


class UnknownLayout(InputError):
    """A tensor that no rule covers; a rule given by the user might."""


KINDS = "ABCDEFGH"
"""Every kind of layout, by letter."""

ROLES = ("up", "gate", "down")
"""What the matrices of an expert do; the main experts' families have these names."""


@dataclass(frozen=True, slots=True)
class ModelType:
    """Kinds seen on disk, modules of the routed and the shared experts, and fields of the config.

    `module` and `shared` stand between the layer's number and the expert's own name; several are
    separated by "|". `count` and `size` name the config's fields for E and p: nested ones have a
    dot, alternatives a "|". Every field is looked up in the config itself and then in its text
    part. `gated` is False for experts without a gate. `sections` gives, for every further set of
    experts of the model, its name and the path of the config with its fields. `split` says that
    the experts numbered E and above, where E is the first of a list of counts, are the first
    section's. `padding` names the field that counts stacked experts without content. `names` gives
    the role (gate, up, down or gate_up) of projections that have names of their own.
    """

    kinds: str
    module: str = "mlp.experts"
    shared: str | None = None
    count: str = "num_experts"
    size: str = "moe_intermediate_size"
    gated: bool = True
    sections: tuple[tuple[str, str], ...] = ()
    split: bool = False
    padding: str | None = None
    names: tuple[tuple[str, str], ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """The alternatives of `module`."""
        return tuple(self.module.split("|"))

    @property
    def shared_modules(self) -> tuple[str, ...]:
        """The alternatives of `shared`; none without shared experts."""
        return tuple(self.shared.split("|")) if self.shared else ()


UNKNOWN = ModelType("AB")
"""A type without an entry: per-expert names speak for themselves, stacked tensors do not."""

_TEXT_PARTS = ("text_config", "thinker_config.text_config", "language_config", "llm_config")


def at_path(config: JsonObject, path: str) -> object:
    """The value at the dotted `path` of nested tables, or None."""
    value: object = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def text_configs(config: JsonObject) -> list[JsonObject]:
    """The config itself and those of its parts that describe a language model."""
    parts = [at_path(config, path) for path in _TEXT_PARTS]
    return [config, *(part for part in parts if isinstance(part, dict))]


def config_integer(config: JsonObject, names: str, position: int = 0) -> int | None:
    """The first whole number among the fields `names` ("a|b.c") of the config or its text part.

    Of a field with a list of numbers, the one at `position`.
    """
    for name in names.split("|"):
        for root in text_configs(config):
            value = at_path(root, name)
            if isinstance(value, list) and position < len(value):
                value = value[position]
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def section_config(config: JsonObject, rule: ModelType, section: str) -> JsonObject:
    """The config that holds a section's fields; that of the whole model for the main one."""
    if not section:
        return config
    part = at_path(config, dict(rule.sections).get(section, "")) if rule.sections else None
    if isinstance(part, dict):
        return part
    return config if rule.split else {}
