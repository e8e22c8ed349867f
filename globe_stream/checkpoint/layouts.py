"""Where each model type keeps its experts: adding a type is one entry of `MODEL_TYPES`.

Kinds (E experts a layer, p expert intermediate size, d hidden size)
    A  per expert: gate_proj, up_proj (p, d), down_proj (d, p)
    B  per expert: w1 = gate, w3 = up (p, d), w2 = down (d, p)
    C  stacked: gate_up (E, 2p, d), gate = rows :p, up = rows p:; down (E, d, p)
    D  stacked, transposed: gate_up (E, d, 2p), gate = columns :p, up = columns p:; down (E, p, d)
    E  as D, interleaved: gate = columns 0::2, up = columns 1::2
    F  flat: w1 = gate, v1 = up, w2 = down, all (E p, d); w2 holds the transpose

Names decide which tensors are experts; the model type decides the orientation of stacked ones,
which their shapes cannot always tell. Source: docs/layouts.md.
"""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelType:
    """Kinds seen on disk, module of the routed and the shared experts, and fields of the config.

    `module` stands between the layer's number and the expert's own name. Field names with a dot
    are nested. Every name is looked up in the config itself and then in its `text_config`.
    """

    kinds: str
    module: str = "mlp.experts"
    shared: str | None = None
    count: str = "num_experts"
    size: str = "moe_intermediate_size"


_QWEN = ModelType("AC", shared="mlp.shared_expert")
_DEEPSEEK = ModelType("AC", shared="mlp.shared_experts", count="n_routed_experts")
_OLMO = ModelType("AC", size="intermediate_size")
_MIXTRAL = ModelType(
    "BC", "block_sparse_moe.experts", count="num_local_experts", size="intermediate_size"
)
_GRANITE = ModelType(
    "C", "block_sparse_moe", "shared_mlp", count="num_local_experts", size="intermediate_size"
)
_LLAMA4 = ModelType(
    "D",
    "feed_forward.experts",
    "feed_forward.shared_expert",
    count="num_local_experts",
    size="intermediate_size",
)

MODEL_TYPES: dict[str, ModelType] = {
    "qwen2_moe": _QWEN,
    "qwen3_moe": ModelType("AC", count="num_local_experts|num_experts"),
    "qwen3_next": _QWEN,
    "qwen3_5_moe": _QWEN,
    "qwen3_5_moe_text": _QWEN,
    "qwen3_vl_moe": ModelType("ACD"),
    "qwen3_vl_moe_text": ModelType("ACD"),
    "olmoe": _OLMO,
    "flex_olmo": _OLMO,
    "mixtral": _MIXTRAL,
    "minimax": _MIXTRAL,
    "minimax_m2": _MIXTRAL,
    "phimoe": _MIXTRAL,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm4_moe": _DEEPSEEK,
    "dots1": _DEEPSEEK,
    "bailing_hybrid": ModelType("AC", shared="mlp.shared_experts"),
    "afmoe": ModelType("AC", shared="mlp.shared_experts"),
    "ernie4_5_moe": ModelType("AC", shared="mlp.shared_experts", count="moe_num_experts"),
    "hunyuan_v1_moe": ModelType("AC", shared="mlp.shared_mlp", size="intermediate_size"),
    "jamba": ModelType("AC", "feed_forward.experts", size="intermediate_size"),
    "lfm2_moe": ModelType("BC", "feed_forward.experts"),
    "granitemoe": _GRANITE,
    "granitemoeshared": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "jetmoe": ModelType("C", "mlp", count="num_local_experts", size="intermediate_size"),
    "gpt_oss": ModelType("E", count="num_local_experts", size="intermediate_size"),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "dbrx": ModelType(
        "F",
        "ffn.experts.mlp",
        count="ffn_config.moe_num_experts",
        size="ffn_config.ffn_hidden_size",
    ),
}

UNKNOWN = ModelType("AB")
"""A type without an entry: per-expert names speak for themselves, stacked tensors do not."""


@dataclass(frozen=True, slots=True)
class TensorName:
    """What the name of an expert tensor says.

    `form` is "per_expert" (A, B), "fused" (C, D or E), "linear" (always C), "flat" (F) or "shared";
    `role` is "gate", "up", "down" or "gate_up"; `part` is "weight", "scale_inv" (fp8), "blocks" or
    "scales" (mxfp4). `kind` is A or B for per-expert names, empty where the name does not tell.
    `group` is the name up to and including the layer's number and module.
    """

    form: str
    kind: str
    role: str
    part: str
    group: str
    layer: int
    expert: int
    extra: bool


_ROLES = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
    "v1": "up",
    "gate_up_proj": "gate_up",
    "input_linear": "gate_up",
    "output_linear": "down",
}


def _alternatives(modules: set[str | None]) -> str:
    return "|".join(re.escape(module) for module in sorted(m for m in modules if m))


_MODULES = {entry.module for entry in MODEL_TYPES.values()}
_ROUTED = _alternatives({module for module in _MODULES if module.endswith("experts")})
_LINEAR = _alternatives({module for module in _MODULES if "experts" not in module})
_SHARED = _alternatives({entry.shared for entry in MODEL_TYPES.values()})
_LAYER = r"^(?P<group>(?P<prefix>(?:.*\.)?)(?:layers|blocks)\.(?P<layer>\d+)\.(?:{modules}))\."
_PART = r"(?P<part>weight|weight_scale_inv)$"
_FORMS = {
    "shared": re.compile(
        _LAYER.format(modules=_SHARED)
        + r"(?P<proj>gate_proj|up_proj|down_proj|input_linear|output_linear)\."
        + _PART
    ),
    "flat": re.compile(
        _LAYER.format(modules=re.escape("ffn.experts.mlp"))
        + r"(?P<proj>w1|v1|w2)(?P<part>|\.weight)$"
    ),
    "per_expert": re.compile(
        _LAYER.format(modules=_ROUTED)
        + r"(?P<expert>\d+)\.(?P<proj>gate_proj|up_proj|down_proj|w1|w2|w3)\."
        + _PART
    ),
    "fused": re.compile(
        _LAYER.format(modules=_ROUTED)
        + r"(?P<proj>gate_up_proj|down_proj)(?P<part>|\.weight|_blocks|_scales)$"
    ),
    "linear": re.compile(
        _LAYER.format(modules=_LINEAR) + r"(?P<proj>input_linear|output_linear)\.(?P<part>weight)$"
    ),
}
_PARTS = {"weight_scale_inv": "scale_inv", "_blocks": "blocks", "_scales": "scales"}
_MODULES_OF_MLP = {"mlp", "moe", "ffn", "feed_forward", "block_sparse_moe"}
_NOT_MATRICES = re.compile(r"(_bias|\.bias)$")


def parse_name(name: str) -> TensorName | None:
    """What `name` says if it is a tensor of a routed or shared expert, else None."""
    for form, pattern in _FORMS.items():
        match = pattern.match(name)
        if match:
            return _tensor_name(form, match)
    return None


def _tensor_name(form: str, match: re.Match[str]) -> TensorName:
    fields = match.groupdict()
    projection = fields["proj"]
    kind = {"linear": "C", "flat": "F"}.get(form, "")
    if form == "per_expert":
        kind = "B" if projection.startswith("w") else "A"
    return TensorName(
        form=form,
        kind=kind,
        role=_ROLES[projection],
        part=_PARTS.get(fields["part"], "weight"),
        group=fields["group"],
        layer=int(fields["layer"]),
        expert=int(fields.get("expert") or 0),
        extra=is_extra(fields["prefix"]),
    )


def is_extra(prefix: str) -> bool:
    """Whether a name, or the part before its layer, belongs to multi-token prediction."""
    return any(part.startswith(("mtp", "nextn")) for part in prefix.split("."))


def looks_like_expert(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor that no rule matches would be an expert's weights left behind.

    True for everything under a component `experts` and for every three-dimensional tensor of an MLP
    module; biases, routers and the experts of attention layers are neither.
    """
    parts = name.split(".")
    if _NOT_MATRICES.search(name) or any("attention" in part or "attn" in part for part in parts):
        return False
    return "experts" in parts or (len(shape) == 3 and not _MODULES_OF_MLP.isdisjoint(parts))


def model_type_of(config: dict[str, Any]) -> str:
    """The config's model type, or that of its text part if only that is registered."""
    outer = str(config.get("model_type", "unknown"))
    inner = (config.get("text_config") or {}).get("model_type")
    return str(inner) if outer not in MODEL_TYPES and inner in MODEL_TYPES else outer


def config_integer(config: dict[str, Any], names: str) -> int | None:
    """The first whole number among the fields `names` ("a|b.c") of the config or its text part."""
    for name in names.split("|"):
        for root in (config, config.get("text_config") or {}):
            value: Any = root
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None
