"""Transformers models whose routed experts compute with factors.

`patch_model` changes a loaded model; its `save_pretrained` then writes a checkpoint of its own kind
(model type `globe_stream_<type>`), which `from_pretrained` of this module, or after it
`transformers.AutoModelForCausalLM`, loads again. Needs the `hf` extra; nothing else here does.
Source: docs/design.md, section Export formats.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from globe_stream.errors import InputError
from globe_stream.formatting import parse_size
from globe_stream.inference.factors import FactorGroup, Factors, load_factors
from globe_stream.inference.layers import Bank, ComposedCache, ComposedExperts
from globe_stream.inference.pretrained import (
    CACHE,
    FIELD,
    LAYER,
    adopt,
    base_classes,
    become_composed,
    expert_sizes,
    experts_modules,
    family_parts,
    module_name,
    patched_class,
)


def patch_model(
    model: Any,
    path: str | Path,
    cache: str | int = CACHE,
    dtype: torch.dtype | None = None,
    offload_folder: str | Path | None = None,
) -> Any:
    """Replace up and gate of the routed experts of `model` by the factors in `path`, in place.

    Down projections, routers and all else stay; where the run took shared experts too, these get
    their reconstruction as plain matrices. The forward pass equals that of the dense export up to
    rounding.

    Args:
        model: a transformers model whose experts are fused modules (transformers 5).
        path: the folder of an `export --format factors`.
        cache: bytes, or a size such as "2GiB", for composed matrices; see `warm_up`.
        dtype: in which factors are kept and computed with; default that of the model.
        offload_folder: where accelerate keeps the new weights of layers that it offloads.

    Raises InputError when factors and model do not belong together.
    """
    factors = load_factors(path)
    modules = dict(experts_modules(model))
    described = _describe(factors, modules)
    compute = dtype or model.dtype
    banks = nn.ModuleDict(
        {
            module_name(group.key): Bank(factors.bank(group).to(compute), group.activation)
            for group in factors.groups
        }
    )
    shared = ComposedCache(cache if isinstance(cache, int) else parse_size(cache))
    for layer, module in modules.items():
        if str(layer) in described["layers"]:
            _patch_layer(module, layer, factors, described, banks, shared, compute, offload_folder)
    _patch_shared_experts(model, factors)
    adopt(model, described, banks.to(_device(model)), shared)
    return model


def from_pretrained(path: str | Path, cache: str | int = CACHE, **options: Any) -> Any:
    """Load what `save_pretrained` of a patched model wrote to the folder `path`.

    `options` go to transformers' own `from_pretrained` (dtype, device_map, offload_folder, ...).
    Raises InputError when `path` holds no patched model.
    """
    file = Path(path) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if FIELD not in config:
        raise InputError(
            f"{path}: holds no patched model. Patch one with patch_model and save_pretrained"
        )
    model_class = patched_class(*base_classes(config[FIELD]))
    model = model_class.from_pretrained(path, **options)
    model.globe_cache.budget = cache if isinstance(cache, int) else parse_size(cache)
    return model


def warm_up(model: Any, input_ids: Tensor | None = None) -> int:
    """Fill the cache of a patched model; returns how many matrices it then holds.

    With `input_ids` (batch, tokens) one forward pass counts which experts the text uses, and the
    most used are composed first; without, those used most so far, then layer by layer.
    """
    cache: ComposedCache = model.globe_cache
    if input_ids is not None:
        with torch.no_grad():
            model(input_ids=input_ids)
    modules = [module for module in model.modules() if isinstance(module, ComposedExperts)]
    owner = {key: module for module in modules for key in module.composable()}
    ranked = sorted(owner, key=lambda key: -cache.requests[key])
    cache.clear()
    fitting = _fitting(ranked, owner, cache.budget)
    counts = cache.requests.copy()
    for key in reversed(fitting):  # the most used last, so that they are the last to go
        owner[key].composed(key[0], key[2])
    cache.requests = counts
    return len(cache)


def _fitting(ranked: list[Any], owner: dict[Any, ComposedExperts], budget: int) -> list[Any]:
    fitting, used = [], 0
    for key in ranked:
        atoms = owner[key]._parts[key[0]].bank.atoms
        used += atoms[0].numel() * atoms.itemsize
        if used > budget:
            break
        fitting.append(key)
    return fitting


# -- what belongs together ---------------------------------------------------------------------


def _describe(factors: Factors, modules: dict[int, Any]) -> dict[str, Any]:
    """What a saved config must say to rebuild the structure: units, and experts by layer."""
    routed: dict[int, dict[str, dict[str, Any]]] = {}
    for group in factors.groups:
        for layer, expert, shared in group.members.tolist():
            if not shared:
                part = routed.setdefault(layer, {}).setdefault(
                    group.family, {"unit": group.key, "experts": []}
                )
                part["experts"].append(expert)
    for layer in routed:
        if layer not in modules:
            raise InputError(
                f"{factors.folder}: has factors for layer {layer}, where the model has no fused "
                "experts module that can be patched. Use the model they were made from, or "
                "export the run as dense"
            )
        _check_shapes(factors, layer, modules[layer])
    return {
        "format": 1,
        "units": {group.key: _describe_group(group) for group in factors.groups},
        "layers": {str(layer): parts for layer, parts in sorted(routed.items())},
    }


def _check_shapes(factors: Factors, layer: int, module: Any) -> None:
    count, p, d = expert_sizes(module)
    for group in factors.groups:
        members = group.members[group.members[:, 0] == layer]
        routed = members[members[:, 2] == 0]
        if len(routed) and ((group.p, group.d) != (p, d) or int(routed[:, 1].max()) >= count):
            raise InputError(
                f"{factors.folder}: made for experts of {group.p} x {group.d}; layer {layer} of "
                f"the model has {count} of {p} x {d}. Use the model the factors were made from"
            )


def _describe_group(group: FactorGroup) -> dict[str, Any]:
    phi = group.activation
    return {
        "rank": group.rank,
        "bases": group.bases,
        "d": group.d,
        "activation": phi.name,
        "lambda": phi.lam,
        "gain": phi.gamma,
        "scale": group.scale,
        "offset": group.offset,
    }


def _patch_layer(
    module: Any,
    layer: int,
    factors: Factors,
    described: dict[str, Any],
    banks: nn.ModuleDict,
    cache: ComposedCache,
    dtype: torch.dtype,
    offload_folder: str | Path | None,
) -> None:
    hook = _unhook(module, layer, offload_folder)
    parts = family_parts(module, described, layer, banks)
    device = module.down_proj.device
    fused = module.gate_up_proj.detach()
    for family, part in parts.items():
        dense = _dense(fused, module, family, sorted(part.dense_rows))
        adapters, codes = _stack(factors, family, layer, list(part.rows))
        ComposedExperts.set_family(
            module, family, adapters.to(device, dtype), codes.to(device), dense.to(dtype)
        )
    del module.gate_up_proj
    become_composed(module, layer, parts, cache)
    if hook is not None:
        _hook_again(module, hook, Path(str(offload_folder)) / f"layer-{layer}")


def _stack(factors: Factors, family: str, layer: int, experts: list[int]) -> tuple[Tensor, Tensor]:
    """Adapters (E', p, r) and codes (E', m) of some experts of a layer."""
    if not experts:
        return torch.empty(0), torch.empty(0)
    found = [factors.find(family, layer, expert) for expert in experts]
    group = found[0][0]
    adapters = torch.stack([factors.adapter(group, position) for _, position in found])
    return adapters, group.codes([position for _, position in found])


def _dense(fused: Tensor, module: Any, family: str, experts: list[int]) -> Tensor:
    """Dense matrices (E', p, d) of some experts out of the fused parameter."""
    if not experts:
        return torch.empty(0, device=fused.device)
    rows = fused[experts].mT if module.is_transposed else fused[experts]
    p = rows.shape[1] // 2
    start = 0 if family == "gate" else 1
    if module.is_concatenated:
        return rows[:, start * p : (start + 1) * p].contiguous()
    return rows[:, start::2].contiguous()


def _patch_shared_experts(model: nn.Module, factors: Factors) -> None:
    """Put the reconstruction of shared experts' blocks in their rows, where a run took them."""
    names = {"up": ("up_proj",), "gate": ("gate_proj",)}
    for group in factors.groups:
        for layer, block, shared in group.members.tolist():
            if not shared:
                continue
            linear = _shared_linear(model, layer, names[group.family])
            matrix = factors.reconstruct(group.family, layer, block, shared=True)
            with torch.no_grad():
                linear.weight[block * group.p : (block + 1) * group.p].copy_(matrix)


def _shared_linear(model: nn.Module, layer: int, names: tuple[str, ...]) -> Any:
    for name, module in model.named_modules():
        match = LAYER.search(name)
        last = name.rsplit(".", 2)
        if (
            match
            and int(match[1]) == layer
            and len(last) == 3
            and last[2] in names
            and last[1].startswith("shared")
        ):
            return module
    raise InputError(
        f"the model has no shared expert with {names[0]} in layer {layer}, "
        "for which there are factors. Use the model they were made from"
    )


# -- layers that accelerate offloads -------------------------------------------------------------


def _unhook(module: Any, layer: int, folder: str | Path | None) -> Any:
    """Take accelerate's hook off a module, its weights brought in; the hook, or None."""
    hook = getattr(module, "_hf_hook", None)
    if hook is None:
        return None
    if getattr(hook, "offload", False):
        if folder is None:
            raise InputError(
                f"layer {layer} of the model is offloaded: give patch_model an "
                "offload_folder for its new weights"
            )
        hook.pre_forward(module)
    importlib.import_module("accelerate.hooks").remove_hook_from_module(module)
    vars(module).pop("forward", None)  # the hook leaves the old class's method behind
    return hook


def _hook_again(module: Any, hook: Any, folder: Path) -> None:
    if getattr(hook, "offload", False):
        accelerate = importlib.import_module("accelerate")
        accelerate.disk_offload(module, str(folder), execution_device=hook.execution_device)
    else:
        importlib.import_module("accelerate.hooks").add_hook_to_module(module, hook)


def _device(model: Any) -> torch.device:
    device: torch.device = model.device
    return torch.device("cpu") if device.type == "meta" else device
