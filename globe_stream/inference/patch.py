"""`patch_model`: a loaded transformers model and exported factors become a compressed model.

What results is an instance of the classes that `pretrained` loads from a folder, so it is used,
saved and loaded again in the same way. Needs the `hf` extra.
"""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from globe_stream.errors import InputError
from globe_stream.factorization.model_files import (
    FAMILIES,
    FIELD,
    ModelDescription,
    bank_module,
    members_by_layer,
    model_config,
)
from globe_stream.formatting import parse_size
from globe_stream.inference.factors import Factors, load_factors
from globe_stream.inference.layers import ComposedExperts
from globe_stream.inference.pretrained import install, model_classes
from globe_stream.inference.structure import checked_modules, layer_of


def patch_model(
    model: Any,
    path: str | Path,
    cache: str | int | None = None,
    dtype: torch.dtype | None = None,
    offload_folder: str | Path | None = None,
) -> Any:
    """Replace up and gate of the routed experts of `model` by the factors in `path`, in place.

    Down projections, routers and all else stay; where the run took shared experts too, these get
    their reconstruction as plain matrices. The forward pass equals that of the dense export up to
    rounding. It needs the whole original in memory first: an export as a model does not.

    Args:
        model: a transformers model whose experts are fused modules (transformers 5).
        path: the folder of an export of factors.
        cache: budget of composed matrices: bytes, or a size such as "2GiB". Default: half of what
            the compressed form saves; see `warm_up`.
        dtype: in which factors are kept and computed with; default that of the model.
        offload_folder: where accelerate keeps the new weights of layers that it offloads.

    Raises InputError when factors and model do not belong together.
    """
    factors = load_factors(path)
    description = describe(factors)
    modules = checked_modules(model, description)
    compute = dtype or model.dtype
    hooks = {layer: _unhook(one, layer, offload_folder) for layer, (_, one) in modules.items()}
    before = {layer: _matrices(module) for layer, (_, module) in modules.items()}
    _adopt(model, type(model.config).model_type, description)
    with torch.device("meta"):
        install(model, description)
    model.globe_cache.budget = _budget(cache, model.globe_cache.budget, compute)
    _fill_banks(model, factors, compute)
    for layer, (_, module) in modules.items():
        _fill_layer(module, layer, factors, before.pop(layer), compute)
        if hooks[layer] is not None:
            _hook_again(module, hooks[layer], Path(str(offload_folder)) / f"layer-{layer}")
    _patch_shared_experts(model, factors)
    return model


def describe(factors: Factors) -> ModelDescription:
    """Banks and members of exported factors."""
    groups = [
        (group.key, group.family, [(a, b, bool(c)) for a, b, c in group.members.tolist()])
        for group in factors.groups
    ]
    return ModelDescription(
        banks={group.key: group.sizes for group in factors.groups}, layers=members_by_layer(groups)
    )


def _budget(cache: str | int | None, default: int, compute: torch.dtype) -> int:
    if cache is None:
        return default * compute.itemsize // torch.get_default_dtype().itemsize
    return cache if isinstance(cache, int) else parse_size(cache)


def _adopt(model: Any, model_type: str, description: ModelDescription) -> None:
    """Make `model` and its config instances of the classes that load the compressed form."""
    config_class, model_class = model_classes(model_type)
    model.config.__class__, model.__class__ = config_class, model_class
    described = model_config({"model_type": model_type}, description)
    for name in ("model_type", "auto_map", "model_file", FIELD):
        setattr(model.config, name, described[name])
    model.config.architectures = [model_class.__name__]
    # Loading recorded how tensors of the source were fused; a compressed model has its own names.
    model._weight_conversions = None


# -- what fills the layers ---------------------------------------------------------------------


class _Matrices:
    """gate (E, p, d), up (E, p, d) and down (E, d, p) of an experts module, as views."""

    def __init__(self, module: Any) -> None:
        fused, down = module.gate_up_proj.detach(), module.down_proj.detach()
        fused, self.down = (fused.mT, down.mT) if module.is_transposed else (fused, down)
        p = fused.shape[1] // 2
        halves = (
            (fused[:, :p], fused[:, p:])
            if module.is_concatenated
            else (fused[:, 0::2], fused[:, 1::2])
        )
        self.families = dict(zip(FAMILIES, halves, strict=True))


def _matrices(module: Any) -> _Matrices:
    return _Matrices(module)


def _fill_banks(model: Any, factors: Factors, dtype: torch.dtype) -> None:
    device = torch.device("cpu") if model.device.type == "meta" else model.device
    for group in factors.groups:
        bank = model.globe_banks[bank_module(group.key)]
        if group.sizes.bits is None:
            bank.atoms = nn.Parameter(factors.bank(group).to(device, dtype))
        else:
            bank.packed, bank.scales = _fixed(factors.packed_bank(group), device)


def _fill_layer(
    module: Any, layer: int, factors: Factors, before: _Matrices, dtype: torch.dtype
) -> None:
    device = before.down.device
    for family, part in module._parts.items():
        if part.rows:
            _fill_factors(module, family, layer, factors, device, dtype)
        if part.dense_rows:
            dense = before.families[family][list(part.dense_rows)]
            setattr(module, f"{family}_dense", nn.Parameter(dense.to(dtype).contiguous()))
    module.down_proj = nn.Parameter(before.down.to(dtype).contiguous())


def _fill_factors(
    module: Any,
    family: str,
    layer: int,
    factors: Factors,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Adapters (E', p, r), or their bits and scales, and codes (E', m) of a layer's experts."""
    found = [factors.find(family, layer, expert) for expert in module._parts[family].rows]
    group, positions = found[0][0], [position for _, position in found]
    if group.sizes.bits is None:
        adapters = torch.stack([factors.adapter(group, position) for position in positions])
        setattr(module, f"{family}_adapters", nn.Parameter(adapters.to(device, dtype)))
    else:
        parts = zip(*(factors.packed_adapter(group, one) for one in positions), strict=True)
        packed, scales = _fixed([torch.stack(part) for part in parts], device)
        setattr(module, f"{family}_packed", packed)
        setattr(module, f"{family}_scales", scales)
    codes = nn.Parameter(group.codes(positions).to(device), requires_grad=group.sizes.bits is None)
    setattr(module, f"{family}_codes", codes)


def _fixed(values: Iterable[Tensor], device: torch.device) -> list[nn.Parameter]:
    """Parameters that are not trained."""
    return [nn.Parameter(one.to(device), requires_grad=False) for one in values]


def _patch_shared_experts(model: nn.Module, factors: Factors) -> None:
    """Put the reconstruction of shared experts' blocks in their rows, where a run took them."""
    for group in factors.groups:
        for layer, block, shared in group.members.tolist():
            if not shared:
                continue
            linear = _shared_linear(model, layer, f"{group.family}_proj")
            matrix = factors.reconstruct(group.family, layer, block, shared=True)
            with torch.no_grad():
                linear.weight[block * group.sizes.p : (block + 1) * group.sizes.p].copy_(matrix)


def _shared_linear(model: nn.Module, layer: int, wanted: str) -> Any:
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        shared = parent.rpartition(".")[2].startswith("shared")
        if shared and last == wanted and layer_of(name) == layer:
            return module
    raise InputError(
        f"the model has no shared expert with {wanted} in layer {layer}, "
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


def _hook_again(module: ComposedExperts, hook: Any, folder: Path) -> None:
    if getattr(hook, "offload", False):
        accelerate = importlib.import_module("accelerate")
        accelerate.disk_offload(module, str(folder), execution_device=hook.execution_device)
    else:
        importlib.import_module("accelerate.hooks").add_hook_to_module(module, hook)
