"""The structure of patched models, and the classes that let transformers save and load it."""

import importlib
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn

from globe_stream.checkpoint.experts import GATED_FAMILIES
from globe_stream.factorization.activation import Activation
from globe_stream.formatting import parse_size
from globe_stream.inference.layers import Bank, ComposedCache, ComposedExperts, FamilyPart

CACHE = "2GiB"
FIELD = "globe_stream"
"""Where config.json describes the structure."""
_PREFIX = "globe_stream_"
LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.")
_NEEDED = (
    "gate_up_proj",
    "down_proj",
    "_apply_gate",
    "is_transposed",
    "is_concatenated",
    "has_bias",
    "num_experts",
)


def experts_modules(model: nn.Module) -> Iterator[tuple[int, Any]]:
    """Layer number and module of all fused experts."""
    for name, module in model.named_modules():
        match = LAYER.search(name)
        if match and all(hasattr(module, needed) for needed in _NEEDED):
            yield int(match[1]), module


def expert_sizes(module: Any) -> tuple[int, int, int]:
    """Experts, p and d of an experts module."""
    count, first, second = module.down_proj.shape
    return (count, first, second) if module.is_transposed else (count, second, first)


def module_name(key: str) -> str:
    return key.replace("/", "_").replace("-", "_")


def family_parts(
    module: Any, described: dict[str, Any], layer: int, banks: nn.ModuleDict
) -> dict[str, FamilyPart]:
    """Which experts of a layer have factors, by family; families without any are all dense."""
    count = expert_sizes(module)[0]
    parts = {}
    for family in GATED_FAMILIES:
        part = described["layers"][str(layer)].get(family)
        key = part["unit"] if part else next(iter(described["units"]))
        members = part["experts"] if part else []
        group, bank = described["units"][key], banks[module_name(key)]
        assert isinstance(bank, Bank)
        others = [expert for expert in range(count) if expert not in set(members)]
        parts[family] = FamilyPart(
            bank,
            {expert: row for row, expert in enumerate(members)},
            {expert: row for row, expert in enumerate(others)},
            group["scale"],
            group["offset"],
        )
    return parts


def become_composed(
    module: Any, layer: int, parts: dict[str, FamilyPart], cache: ComposedCache
) -> None:
    kind = type(module)
    module.__class__ = type(f"Globe{kind.__name__}", (ComposedExperts, kind), {})
    module.install(layer, parts, cache)
    module._is_hf_initialized = True  # its class would initialise parameters that are gone


def adopt(
    model: Any, described: dict[str, Any], banks: nn.ModuleDict, cache: ComposedCache
) -> None:
    """Make `model` one of the patched classes."""
    base, config = type(model), type(model.config)
    described["base"] = [f"{kind.__module__}.{kind.__qualname__}" for kind in (base, config)]
    model.__class__ = patched_class(base, config)  # type: ignore[arg-type]
    model.config.__class__ = model.__class__.config_class
    setattr(model.config, FIELD, described)
    model.config.architectures = [type(model).__name__]
    model.globe_banks = banks
    model.globe_cache = cache
    # Loading recorded how per-expert tensors were fused; a patched model is saved as it is.
    model._weight_conversions = []


@cache
def patched_class(base: Any, base_config: Any) -> Any:
    """The patched variant of a model class, registered with transformers' Auto classes."""
    transformers = importlib.import_module("transformers")
    kind = _PREFIX + base_config.model_type
    config_class = type(
        f"Globe{base_config.__name__}", (base_config,), {"model_type": kind, "__module__": __name__}
    )

    def build(self: Any, config: Any, *args: Any, **options: Any) -> None:
        base.__init__(self, config, *args, **options)
        _build(self, getattr(config, FIELD))

    model_class = type(
        f"Globe{base.__name__}",
        (base,),
        {
            "config_class": config_class,
            "__init__": build,
            "__module__": __name__,
        },
    )
    transformers.AutoConfig.register(kind, config_class, exist_ok=True)
    transformers.AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    return model_class


def _build(model: Any, described: dict[str, Any]) -> None:
    """Give a freshly made model the patched structure, to be filled from a checkpoint."""
    banks = nn.ModuleDict()
    for key, group in described["units"].items():
        phi = Activation(group["activation"], group["lambda"], group["gain"])
        empty = torch.empty(group["bases"], group["rank"], group["d"])
        banks[module_name(key)] = Bank(empty, phi)
    cache = ComposedCache(parse_size(CACHE))
    for layer, module in dict(experts_modules(model)).items():
        if str(layer) not in described["layers"]:
            continue
        parts = family_parts(module, described, layer, banks)
        _, p, d = expert_sizes(module)
        for family, part in parts.items():
            bases, rank, _ = part.bank.atoms.shape
            rows, others = len(part.rows), len(part.dense_rows)
            ComposedExperts.set_family(
                module,
                family,
                torch.empty((rows, p, rank) if rows else 0),
                torch.empty((rows, bases) if rows else 0),
                torch.empty((others, p, d) if others else 0),
            )
        del module.gate_up_proj
        become_composed(module, layer, parts, cache)
    model.globe_banks = banks
    model.globe_cache = cache


def base_classes(described: dict[str, Any]) -> list[Any]:
    found = []
    for name in described["base"]:
        module, _, kind = name.rpartition(".")
        found.append(getattr(importlib.import_module(module), kind))
    return found
