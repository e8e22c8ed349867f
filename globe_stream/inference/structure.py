"""Where a transformers model has its experts, and their replacement by layers that use factors."""

import re
from typing import Any

import torch
from torch import nn

from globe_stream.errors import InputError
from globe_stream.factorization.model_files import (
    FAMILIES,
    BankSizes,
    Members,
    ModelDescription,
    bank_module,
)
from globe_stream.factorization.packed_factors import adapter_specs
from globe_stream.inference.bank import Bank, PackedBank, empty_parameters
from globe_stream.inference.cache import ComposedCache
from globe_stream.inference.layers import ComposedExperts, FamilyPart

_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.")
_NEEDED = (
    "gate_up_proj",
    "down_proj",
    "_apply_gate",
    "is_transposed",
    "is_concatenated",
    "has_bias",
    "num_experts",
)


def layer_of(name: str) -> int | None:
    """The number of the layer that a module of this name belongs to."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def experts_modules(model: nn.Module) -> dict[int, tuple[str, Any]]:
    """Name and module of all fused experts, by layer."""
    found: dict[int, tuple[str, Any]] = {}
    for name, module in model.named_modules():
        layer = layer_of(name)
        if layer is not None and all(hasattr(module, needed) for needed in _NEEDED):
            found[layer] = (name, module)
    return found


def expert_sizes(module: Any) -> tuple[int, int, int]:
    """Experts, p and d of an experts module of transformers."""
    count, first, second = module.down_proj.shape
    return (count, first, second) if module.is_transposed else (count, second, first)


def checked_modules(model: nn.Module, description: ModelDescription) -> dict[int, tuple[str, Any]]:
    """Name and module by layer with factors; InputError where the model has other experts."""
    modules = experts_modules(model)
    for layer, parts in description.layers.items():
        if layer not in modules:
            raise InputError(
                f"there are factors for layer {layer}, where the model has no fused experts module "
                "that can be replaced. Use the model they were made from, or "
                "export the run as dense"
            )
        count, p, d = expert_sizes(modules[layer][1])
        for members in parts.values():
            bank = description.banks[members.bank]
            if (bank.p, bank.d) != (p, d) or max(members.experts) >= count:
                raise InputError(
                    f"the factors were made for experts of {bank.p} x {bank.d}; layer {layer} of "
                    f"the model has {count} of {p} x {d}. Use the model they were made from"
                )
    return {layer: modules[layer] for layer in description.layers}


def make_banks(description: ModelDescription) -> nn.ModuleDict:
    """Banks to be filled, by the names of their modules."""
    return nn.ModuleDict(
        {
            bank_module(key): Bank(one) if one.bits is None else PackedBank(one)
            for key, one in description.banks.items()
        }
    )


def replace_experts(
    module: Any,
    layer: int,
    description: ModelDescription,
    banks: nn.ModuleDict,
    cache: ComposedCache,
) -> None:
    """Turn an experts module into one of layers with factors, its parameters still to be filled.

    They are made where and as torch makes tensors by default: on the meta device while
    transformers builds a model that it is about to load.
    """
    count, p, d = expert_sizes(module)
    parts = {
        family: _part(description.layers[layer].get(family), description, banks, count)
        for family in FAMILIES
    }
    del module.gate_up_proj, module.down_proj
    for family, part in parts.items():
        _register(module, family, part, p, d)
    module.down_proj = nn.Parameter(torch.empty(count, d, p))
    kind = type(module)
    module.__class__ = type(f"Globe{kind.__name__}", (ComposedExperts, kind), {})
    module.install(layer, parts, cache)
    module._is_hf_initialized = True  # its class would initialise parameters that are gone


def _part(
    members: Members | None, description: ModelDescription, banks: nn.ModuleDict, count: int
) -> FamilyPart:
    key = members.bank if members else next(iter(description.banks))
    taken = members.experts if members else ()
    bank = banks[bank_module(key)]
    assert isinstance(bank, Bank)
    others = [expert for expert in range(count) if expert not in set(taken)]
    return FamilyPart(
        bank,
        {expert: row for row, expert in enumerate(taken)},
        {expert: row for row, expert in enumerate(others)},
    )


def _register(module: nn.Module, family: str, part: FamilyPart, p: int, d: int) -> None:
    sizes: BankSizes = part.sizes
    if part.rows:
        count = len(part.rows)
        if sizes.bits is None:
            adapters = torch.empty(count, p, sizes.rank)
            module.register_parameter(f"{family}_adapters", nn.Parameter(adapters))
        else:
            specs = adapter_specs(f"{family}_", p, sizes.rank, sizes.bits[1], (count,))
            for (name, _, _), one in zip(specs, empty_parameters(specs), strict=True):
                module.register_parameter(name, one)
        codes = torch.empty(count, sizes.bases, dtype=torch.float32)
        trained = sizes.bits is None
        module.register_parameter(f"{family}_codes", nn.Parameter(codes, requires_grad=trained))
    if part.dense_rows:
        dense = torch.empty(len(part.dense_rows), p, d)
        module.register_parameter(f"{family}_dense", nn.Parameter(dense))
