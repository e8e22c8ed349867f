"""The classes through which transformers loads and saves models in compressed form.

For a source of type T there are a config class of type `globe_stream_T` and a model class: those of
T, with every layer that config.json describes built from factors. Needs the `hf` extra.
"""

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from globe_stream.errors import InputError
from globe_stream.factorization.model_files import (
    BANKS,
    CLASS_PREFIX,
    FIELD,
    TYPE_PREFIX,
    ModelDescription,
    folder_modules,
    layer_prefix,
)
from globe_stream.formatting import parse_size
from globe_stream.inference.cache import ComposedCache, Key
from globe_stream.inference.layers import ComposedExperts
from globe_stream.inference.structure import checked_modules, make_banks, replace_experts

_SHIM_STANDS_FOR_IT = classmethod(lambda cls, auto_class=None: None)  # noqa: ARG005
"""In place of `register_for_auto_class`, which would have transformers copy our source."""


def from_pretrained(path: str | Path, cache: str | int | None = None, **options: Any) -> Any:
    """Load the folder of an export as a model, or what `save_pretrained` made of one.

    Args:
        path: the folder.
        cache: budget of composed matrices: bytes, or a size such as "2GiB". Default: half of what
            the compressed form saves; see `warm_up`.
        options: to transformers' own `from_pretrained` (dtype, device_map, offload_folder, ...).

    Raises InputError when `path` holds no such model.
    """
    file = Path(path) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if FIELD not in config:
        raise InputError(
            f"{path}: holds no model in compressed form. Make one with "
            "`globe-stream export`, in the format model"
        )
    _, model_class = model_classes(config["model_type"].removeprefix(TYPE_PREFIX))
    model = model_class.from_pretrained(path, **options)
    if cache is not None:
        model.globe_cache.budget = cache if isinstance(cache, int) else parse_size(cache)
    return model


def warm_up(model: Any, input_ids: Tensor | None = None) -> int:
    """Fill the cache of composed matrices; returns how many of them it then holds.

    With `input_ids` (batch, tokens) one forward pass counts which experts the text uses, and those
    most used are composed; without, those used most so far, then layer by layer. The budget is
    `model.globe_cache.budget`, in bytes. Layers that are offloaded are left out.
    """
    cache: ComposedCache = model.globe_cache
    if input_ids is not None:
        with torch.no_grad():
            model(input_ids=input_ids)
    modules = [module for module in model.modules() if isinstance(module, ComposedExperts)]
    owner = {key: module for module in modules if _at_hand(module) for key in module.composable()}
    cache.clear()
    counts = cache.requests.copy()
    with torch.no_grad():
        for key in _fitting(sorted(owner, key=lambda key: -counts[key]), owner, cache.budget):
            owner[key].composed(key[0], [key[2]])
    cache.requests = counts
    return len(cache)


def _at_hand(module: ComposedExperts) -> bool:
    return all(parameter.device.type != "meta" for parameter in module.parameters())


def _fitting(ranked: list[Key], owner: dict[Key, ComposedExperts], budget: int) -> list[Key]:
    fitting, used = [], 0
    for key in ranked:
        used += owner[key].composed_bytes(key[0])
        if used > budget:
            break
        fitting.append(key)
    return fitting


@cache
def model_classes(model_type: str) -> tuple[Any, Any]:
    """Config and model class for sources of type `model_type`, known to the Auto classes.

    Raises InputError when transformers has no causal language model of that type.
    """
    config_class = _config_class(model_type)
    transformers = importlib.import_module("transformers")
    mapping = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    base_config = config_class.__mro__[1]
    if base_config not in mapping:
        raise InputError(
            f"transformers {transformers.__version__} has no causal language model of type "
            f"{model_type}. Install a newer one"
        )
    base = mapping[base_config]

    def build(self: Any, config: Any, *args: Any, **options: Any) -> None:
        base.__init__(self, config, *args, **options)
        install(self, ModelDescription.from_json(getattr(config, FIELD), "config.json"))

    def save(self: Any, save_directory: str | Path, **options: Any) -> None:
        base.save_pretrained(self, save_directory, **options)
        for name, text in folder_modules(model_type).items():
            (Path(save_directory) / name).write_text(text, encoding="utf-8")

    model_class = type(
        CLASS_PREFIX + base.__name__,
        (base,),
        {
            "__doc__": base.__doc__,
            "__init__": build,
            "__module__": __name__,
            "config_class": config_class,
            "save_pretrained": save,
            "register_for_auto_class": _SHIM_STANDS_FOR_IT,
        },
    )
    transformers.AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    return config_class, model_class


def _config_class(model_type: str) -> Any:
    auto = importlib.import_module("transformers.models.auto.configuration_auto")
    if model_type not in auto.CONFIG_MAPPING:
        raise InputError(
            f"transformers does not know models of type {model_type}. Install a newer one"
        )
    base = auto.CONFIG_MAPPING[model_type]

    config_class = type(
        CLASS_PREFIX + base.__name__,
        (base,),
        {
            "__doc__": base.__doc__,
            "__module__": __name__,
            "model_type": TYPE_PREFIX + model_type,
            "register_for_auto_class": _SHIM_STANDS_FOR_IT,
        },
    )
    auto.AutoConfig.register(TYPE_PREFIX + model_type, config_class, exist_ok=True)
    return config_class


def install(model: Any, description: ModelDescription) -> None:
    """Give a freshly made model of transformers layers with factors, to be filled."""
    banks = make_banks(description)
    budget = description.saved_bytes(torch.get_default_dtype().itemsize) // 2
    shared = ComposedCache(max(0, budget))
    modules = checked_modules(model, description)
    for layer, (_, module) in modules.items():
        replace_experts(module, layer, description, banks, shared)
    setattr(model, BANKS, banks)
    model.globe_cache = shared
    _register_names(model, {layer: name for layer, (name, _) in modules.items()})


def _register_names(model: Any, names: dict[int, str]) -> None:
    """Tell transformers how the tensors of a folder are called in the model.

    All that is not ours is called and converted as in the source's own type.
    """
    mapping = importlib.import_module("transformers.conversion_mapping")
    loading = importlib.import_module("transformers.core_model_loading")
    base = type(model).__mro__[1]
    kind: str = model.config_class.model_type
    known = mapping.get_checkpoint_conversion_mapping(base.__name__)
    if known is None:
        known = mapping.get_checkpoint_conversion_mapping(kind.removeprefix(TYPE_PREFIX))
    ours = [
        loading.WeightRenaming(layer_prefix(layer), f"{name}.") for layer, name in names.items()
    ]
    mapping.register_checkpoint_conversion_mapping(kind, ours + (known or []), overwrite=True)
