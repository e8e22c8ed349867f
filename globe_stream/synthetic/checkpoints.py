"""Synthetic mixture-of-experts checkpoints in the qwen2_moe layout, offline, in bounded memory.

Experts are up and gate only. Unplanted ones are Gaussian; planted ones are
`W_i = A_i sum_j alpha_ij B_j` plus noise, with atoms B_j (r, d) of unit Frobenius norm, sparse
non-negative codes and adapters A_i (p, r), so that a bank of `planted_bases` atoms explains all but
the noise. Every matrix comes from a generator seeded by (seed, what, family, layer, expert), so the
files do not depend on the order of writing. Memory: a few experts; planted, also up to 512 MiB of
atoms, those beyond being made again whenever an expert needs them.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from globe_stream.checkpoint.experts import GATED_FAMILIES
from globe_stream.checkpoint.json_files import INDEX_NAME
from globe_stream.config import SyntheticModel
from globe_stream.engine.progress import Bar, Progress
from globe_stream.errors import InputError
from globe_stream.factorization.compose import compose_sparse
from globe_stream.io import files
from globe_stream.io.dtypes import CONFIG_NAMES, DTYPES, TORCH_DTYPES
from globe_stream.io.records import JsonObject, Record
from globe_stream.io.safetensors import TensorEntry
from globe_stream.io.safetensors_writer import PlannedFile, PlannedTensor, plan_file, writing
from globe_stream.io.system_errors import explained

PLANTED_SUPPORT = 4  # atoms in one expert's code
_METADATA = {"format": "pt"}
MARKER = "unfinished.partial"
"""Lies in the folder while it is being written."""
_VOCABULARY = 64
_KEPT_BYTES = 512 * 2**20
_STREAMS = {"expert": 0, "atom": 1, "code": 2, "adapter": 3, "other": 4}


@dataclass(frozen=True)
class SyntheticResult(Record):
    """A checkpoint that was written: its folder, files, bytes, and the seconds that it took."""

    format: int
    out: str
    shards: int
    bytes: int
    seconds: float


def write_synthetic(
    out: Path,
    model: SyntheticModel,
    *,
    shard_bytes: int = 2 * 2**30,
    progress: Progress | None = None,
) -> SyntheticResult:
    """Write the checkpoint `model` into the new or empty folder `out`.

    Raises InputError when `out` has files in it,
    when the disk is too full (before anything is written), and when it fills up on the way.
    """
    begin = time.perf_counter()
    _prepare(out)
    dealt = plan_shards(model, shard_bytes)
    shards = [
        plan_file(out / f"model-{i:05d}-of-{len(dealt):05d}.safetensors", tensors, _METADATA)
        for i, tensors in enumerate(dealt, start=1)
    ]
    size = sum(shard.size for shard in shards)
    files.require_free(out, size, "the checkpoint")
    with explained(out, "writing the checkpoint"):
        (out / MARKER).touch()
    bar = (progress or Progress(silent=True)).bar("synth", model.layers * model.experts)
    _write_shards(shards, _Contents(model), bar)
    files.write_text(out / "config.json", json.dumps(config_of(model), indent=2) + "\n")
    entries = [entry for shard in shards for entry in shard.entries]
    index = {
        "metadata": {"total_size": sum(entry.nbytes for entry in entries)},
        "weight_map": {entry.name: entry.path.name for entry in entries},
    }
    files.write_text(out / INDEX_NAME, json.dumps(index, indent=1) + "\n")
    (out / MARKER).unlink()
    seconds = time.perf_counter() - begin
    return SyntheticResult(1, str(out), len(shards), size, seconds)


def _write_shards(shards: list[PlannedFile], contents: "_Contents", bar: Bar) -> None:
    process = psutil.Process()
    for shard in shards:
        with writing(shard) as file:
            for entry in shard.entries:
                file.write_tensor(entry.start, contents.tensor(entry))
                if entry.name.endswith("up_proj.weight"):
                    bar.advance(1, "", process.memory_info().rss)
    bar.close()


def _prepare(out: Path) -> None:
    with explained(out, "making the folder"):
        out.mkdir(parents=True, exist_ok=True)
    present = list(out.iterdir())
    if present and not is_unfinished(out):
        raise InputError(f"{out}: is not empty. Choose a new folder.")
    for child in present:
        if child.is_file() and child.name != MARKER:
            child.unlink()


def is_unfinished(folder: Path) -> bool:
    """Whether `folder` holds what a killed `write_synthetic` left; calling that again clears it."""
    return (folder / MARKER).exists()


def plan_shards(model: SyntheticModel, shard_bytes: int) -> list[list[PlannedTensor]]:
    """The tensors of `model`, shard by shard."""
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in _tensors(model):
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _tensors(model: SyntheticModel) -> Iterator[PlannedTensor]:
    dtype, d, p = DTYPES[model.dtype], model.hidden, model.intermediate
    yield PlannedTensor("model.embed_tokens.weight", dtype, (_VOCABULARY, d))
    for layer in range(model.layers):
        prefix = f"model.layers.{layer}"
        yield PlannedTensor(f"{prefix}.input_layernorm.weight", dtype, (d,))
        for expert in range(model.experts):
            for family in GATED_FAMILIES:
                name = f"{prefix}.mlp.experts.{expert}.{family}_proj.weight"
                yield PlannedTensor(name, dtype, (p, d))
        yield PlannedTensor(f"{prefix}.mlp.gate.weight", dtype, (model.experts, d))
    yield PlannedTensor("model.norm.weight", dtype, (d,))


class _Contents:
    """The values of every tensor; holds as many planted atoms as `_KEPT_BYTES` allow."""

    def __init__(self, model: SyntheticModel) -> None:
        self._model = model
        self._dtype = TORCH_DTYPES[DTYPES[model.dtype]]
        self._atoms: dict[tuple[int, int], Tensor] = {}

    def tensor(self, planned: TensorEntry) -> Tensor:
        parts = planned.name.split(".")
        if "experts" in parts:
            key = (
                GATED_FAMILIES.index(parts[6].removesuffix("_proj")),
                int(parts[2]),
                int(parts[5]),
            )
            return self._expert(key).to(self._dtype)
        if planned.name.endswith("norm.weight"):
            return torch.ones(planned.shape, dtype=self._dtype)
        layer = int(parts[2]) if parts[1] == "layers" else self._model.layers
        values = self._normal("other", (0, layer, 0), planned.shape)
        return (values / math.sqrt(planned.shape[-1])).to(self._dtype)

    def _expert(self, key: tuple[int, int, int]) -> Tensor:
        model = self._model
        shape = (model.intermediate, model.hidden)
        scale = 1 / math.sqrt(model.hidden)
        if model.planted_bases is None:
            return self._normal("expert", key, shape).mul_(scale)
        weights = self._planted(key)
        weights *= scale / weights.square().mean().sqrt()
        if model.noise:
            weights.add_(self._normal("expert", key, shape), alpha=model.noise * scale)
        return weights

    def _planted(self, key: tuple[int, int, int]) -> Tensor:
        model, generator = self._model, self._generator("code", key)
        assert model.planted_bases is not None
        count = min(PLANTED_SUPPORT, model.planted_bases)
        chosen = generator.choice(model.planted_bases, count, replace=False)
        indices, weights = torch.from_numpy(chosen), generator.uniform(0.5, 1.5, count)
        mixed = torch.empty(model.rank, model.hidden)
        compose_sparse(indices, torch.from_numpy(weights), partial(self._atom, key[0]), mixed)
        return self._normal("adapter", key, (model.intermediate, model.rank)) @ mixed

    def _atom(self, family: int, number: int) -> Tensor:
        """(r, d), of unit Frobenius norm."""
        if (family, number) in self._atoms:
            return self._atoms[family, number]
        atom = self._normal("atom", (family, number, 0), (self._model.rank, self._model.hidden))
        atom /= atom.norm()
        if (len(self._atoms) + 1) * atom.nbytes <= _KEPT_BYTES:
            self._atoms[family, number] = atom
        return atom

    def _normal(self, what: str, key: tuple[int, int, int], shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(int(self._generator(what, key).integers(2**63)))
        return torch.randn(shape, generator=generator)

    def _generator(self, what: str, key: tuple[int, int, int]) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64([self._model.seed, _STREAMS[what], *key]))


def config_of(model: SyntheticModel) -> JsonObject:
    """A qwen2_moe config.json; `synthetic` says how the values were made."""
    heads = next(n for n in (16, 8, 4, 2, 1) if model.hidden % n == 0)
    return {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "dtype": CONFIG_NAMES[DTYPES[model.dtype]],
        "decoder_sparse_step": 1,
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "max_position_embeddings": 512,
        "mlp_only_layers": [],
        "moe_intermediate_size": model.intermediate,
        "num_attention_heads": heads,
        "num_experts": model.experts,
        "num_experts_per_tok": min(4, model.experts),
        "num_hidden_layers": model.layers,
        "num_key_value_heads": heads,
        "shared_expert_intermediate_size": model.intermediate,
        "tie_word_embeddings": True,
        "vocab_size": _VOCABULARY,
        "synthetic": model.model_dump(),
    }
