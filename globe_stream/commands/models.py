"""The models that `eval` compares: the original and what a run makes of it, made and loaded."""

import gc
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from globe_stream.checkpoint.index import ExpertIndex
from globe_stream.errors import InputError, option
from globe_stream.export.manifest import MANIFEST, read_manifest
from globe_stream.factorization.factors_config import read_factors_config
from globe_stream.factorization.model_files import FIELD, ModelDescription, bits_per_weight
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.formatting import parse_size
from globe_stream.inference.patch import patch_model
from globe_stream.io.dtypes import CONFIG_NAMES, DTYPES
from globe_stream.io.records import Json
from globe_stream.io.safetensors import TensorEntry, read_header
from globe_stream.memory.forward_pass import ForwardPass
from globe_stream.memory.model_memory import ModelMemory, estimate_model

_IN_TURN = "HF_DEACTIVATE_ASYNC_LOAD"
_AS_STORED = "auto"
"""The type that the checkpoint is stored in."""


@dataclass(frozen=True)
class Loading:
    """How models are loaded. `offload` is a folder for accelerate's disk offload.

    `held` (bytes) is how much of the weights then stays in memory.
    """

    dtype: str = "fp32"
    offload: Path | None = None
    held: int | None = None
    cache: str | int = "2GiB"

    @property
    def torch_dtype(self) -> str:
        """The name of `dtype` in torch."""
        names = {name: CONFIG_NAMES[stored] for name, stored in DTYPES.items()}
        if self.dtype not in (*names, _AS_STORED):
            known = ", ".join((*names, _AS_STORED))
            raise InputError(f"{option('dtype')} {self.dtype!r} is not known: use one of {known}")
        return names.get(self.dtype, self.dtype)

    def options(self, name: str) -> Json:
        """Arguments of `from_pretrained`, for a model called `name`."""
        options: Json = {"dtype": self.torch_dtype}
        if self.offload is not None:
            options |= {"device_map": "auto", "offload_folder": str(self.offload / name)}
            if self.held is not None:
                options["max_memory"] = {"cpu": self.held}
        return options


def build_empty(folder: Path, loading: Loading) -> Any:
    """The model of a checkpoint folder without weights, on the meta device.

    Raises InputError when transformers does not know the model.
    """
    dtype = loading.torch_dtype
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split(". ")[0].split())
        raise InputError(
            f"{folder}: transformers cannot build this model: {reason}. "
            f"Leave out {option('text')}, or install a newer transformers"
        ) from error


def estimate_loading(
    index: ExpertIndex, sources: Sequence[TrainedRun], loading: Loading, length: int
) -> ModelMemory:
    """What loading and scoring the checkpoint of `index` takes, `length` tokens at a time.

    `sources` are runs that it is to be patched with, one after the other.
    """
    model = build_empty(index.root, loading)
    cache = loading.cache if isinstance(loading.cache, int) else parse_size(loading.cache)
    stored = sum(header.size for header in index.headers)
    needs = estimate_model(model, stored, sources, cache, ForwardPass.of(model).bytes(1, length))
    del model
    gc.collect()
    return needs


def estimate_folder(folder: Path, loading: Loading, length: int) -> ModelMemory:
    """What loading and scoring a model in compressed form takes, its composed matrices included."""
    model = build_empty(folder, loading)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    kept = model.globe_cache.budget + ForwardPass.of(model).bytes(1, length)
    return estimate_model(model, stored, [], 0, kept)


def load_plain(folder: Path, name: str, loading: Loading) -> Any:
    """A checkpoint folder as a transformers model for evaluation."""
    transformers = _transformers()
    with _without_reading_ahead():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **loading.options(name))
    return model.eval()


def load_by_ranges(folder: Path, name: str, loading: Loading) -> Any:
    """As `load_plain`, reading the bytes of one tensor after another: no file is mapped.

    Pages of mapped shards count as the process's own until all of them are loaded, which a
    checkpoint larger than the memory has no room for.
    """
    transformers, safetensors = _transformers(), importlib.import_module("safetensors")
    config = transformers.AutoConfig.from_pretrained(folder)
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    slices = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = safetensors.safe_open(path, framework="pt", backend="pread")
        slices.update({key: file.get_slice(key) for key in file.keys()})  # noqa: SIM118
    with _without_reading_ahead():
        model = known.from_pretrained(
            None, config=config, state_dict=slices, **loading.options(name)
        )
    return model.eval()


@contextmanager
def _without_reading_ahead() -> Iterator[None]:
    """Let transformers load one tensor after another: its threads run ahead as far as they can."""
    before = os.environ.get(_IN_TURN)
    os.environ[_IN_TURN] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_IN_TURN]
        else:
            os.environ[_IN_TURN] = before


def load_patched(original: Path, factors: Path, name: str, loading: Loading) -> Any:
    """The original with the experts of an export of factors."""
    offload = None if loading.offload is None else loading.offload / f"{name}-factors"
    model = load_plain(original, name, loading)
    return patch_model(model, factors, cache=loading.cache, offload_folder=offload)


def is_model_folder(path: Path) -> bool:
    """Whether `path` is the folder of a model in compressed form."""
    return FIELD in _config(path)


def _config(folder: Path) -> Json:
    """What is in its config.json; empty where there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def folder_bits(folder: Path) -> float:
    """Stored bits a weight of the experts with factors in an export as model or factors."""
    described = _config(folder).get(FIELD)
    if isinstance(described, dict):
        description = ModelDescription.from_json(described, str(folder / "config.json"))
        return bits_per_weight(description, _tensors(folder))
    groups = read_factors_config(folder).units.values()
    weights = sum(group.experts * group.p * group.d for group in groups)
    return 8 * sum(entry.nbytes for entry in _tensors(folder)) / weights


def folder_errors(folder: Path) -> dict[str, float]:
    """relF by family that an export says of itself; empty where it says nothing."""
    if not (folder / MANIFEST).is_file():
        return {}
    return read_manifest(folder).relative_frobenius_error


def _tensors(folder: Path) -> Iterator[TensorEntry]:
    for path in sorted(folder.glob("*.safetensors")):
        yield from read_header(path).tensors


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(
            "eval: the transformers package is not installed. pip install 'globe-stream[hf]'"
        ) from error
