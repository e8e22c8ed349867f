"""Stand-ins of published checkpoints: their config and tensors' headers, without any content.

The shards have their full length as sparse files, which take no room on the disk, so that
everything that reads headers only (`inspect`, `plan`, the checks of a recipe) says of a stand-in
what it would say of the model. Weights read from one are zeros.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from globe_stream.checkpoint.json_files import INDEX_NAME
from globe_stream.checkpoint.model_types import MODEL_TYPES
from globe_stream.io import files
from globe_stream.io.records import JsonObject
from globe_stream.io.safetensors_writer import PlannedTensor, plan_file
from globe_stream.io.system_errors import explained

_FP8_BLOCK = 128
_MXFP4_BLOCK = 32
_FAMILIES = ("gate", "up", "down")


@dataclass(frozen=True)
class StandIn:
    """Sizes of a published model's experts, and how they are stored.

    `dense` first layers have no experts; `shared` is the intermediate size of shared experts.
    """

    model: str
    model_type: str
    layers: int
    experts: int
    intermediate: int
    hidden: int
    dense: int = 0
    shared: int = 0
    storage: Literal["bf16", "fp8", "mxfp4"] = "bf16"


STAND_INS = {
    "qwen1.5-moe-a2.7b": StandIn(
        "Qwen/Qwen1.5-MoE-A2.7B", "qwen2_moe", 24, 60, 1408, 2048, shared=5632
    ),
    "olmoe-1b-7b": StandIn("allenai/OLMoE-1B-7B-0924", "olmoe", 16, 64, 1024, 2048),
    "qwen3-30b-a3b": StandIn("Qwen/Qwen3-30B-A3B", "qwen3_moe", 48, 128, 768, 2048),
    "qwen3-235b-a22b": StandIn("Qwen/Qwen3-235B-A22B", "qwen3_moe", 94, 128, 1536, 4096),
    "gpt-oss-20b": StandIn("openai/gpt-oss-20b", "gpt_oss", 24, 32, 2880, 2880, storage="mxfp4"),
    "deepseek-v3": StandIn(
        "deepseek-ai/DeepSeek-V3",
        "deepseek_v3",
        61,
        256,
        2048,
        7168,
        dense=3,
        shared=2048,
        storage="fp8",
    ),
    "kimi-k2": StandIn(
        "moonshotai/Kimi-K2-Instruct",
        "kimi_k2",
        61,
        384,
        2048,
        7168,
        dense=1,
        shared=2048,
        storage="fp8",
    ),
}
"""Published models by short name; sizes from their config.json."""


def write_stand_in(folder: Path, model: StandIn) -> Path:
    """Write `model` into the new folder `folder`, one shard a layer; returns the folder.

    Raises InputError when the folder is there already or cannot be written.
    """
    with explained(folder, "writing the stand-in"):
        folder.mkdir(parents=True)
        names: dict[str, str] = {}
        for layer in range(model.dense, model.layers):
            path = folder / f"model-{layer + 1:05d}-of-{model.layers:05d}.safetensors"
            planned = plan_file(path, list(_tensors(model, layer)))
            with path.open("wb") as file:
                file.write(planned.header)
                file.truncate(planned.size)
            names |= {entry.name: path.name for entry in planned.entries}
        files.write_text(folder / "config.json", json.dumps(_config(model), indent=2))
        files.write_text(folder / INDEX_NAME, json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def _config(model: StandIn) -> JsonObject:
    rule = MODEL_TYPES[model.model_type]
    return {
        "model_type": model.model_type,
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "first_k_dense_replace": model.dense,
        "shared_expert_intermediate_size": model.shared,
        rule.count.split("|")[0]: model.experts,
        rule.size.split("|")[0]: model.intermediate,
    }


def _tensors(model: StandIn, layer: int) -> Iterator[PlannedTensor]:
    """Router, routed and shared experts of one layer."""
    rule = MODEL_TYPES[model.model_type]
    prefix = f"model.layers.{layer}"
    yield PlannedTensor(f"{prefix}.mlp.gate.weight", "BF16", (model.experts, model.hidden))
    module = f"{prefix}.{rule.modules[0]}"
    if model.storage == "mxfp4":
        yield from _mxfp4(module, model)
    else:
        for expert in range(model.experts):
            yield from _matrices(f"{module}.{expert}", model, model.intermediate)
    if model.shared:
        yield from _matrices(f"{prefix}.{rule.shared_modules[0]}", model, model.shared)


def _matrices(prefix: str, model: StandIn, p: int) -> Iterator[PlannedTensor]:
    for family in _FAMILIES:
        shape = (model.hidden, p) if family == "down" else (p, model.hidden)
        name = f"{prefix}.{family}_proj.weight"
        if model.storage == "fp8":
            yield PlannedTensor(name, "F8_E4M3", shape)
            blocks = tuple(-(-side // _FP8_BLOCK) for side in shape)
            yield PlannedTensor(f"{name}_scale_inv", "F32", blocks)
        else:
            yield PlannedTensor(name, "BF16", shape)


def _mxfp4(module: str, model: StandIn) -> Iterator[PlannedTensor]:
    """Stacked blocks of 32 numbers of four bits, and their scales."""
    d, p = model.hidden, model.intermediate
    for name, rows, columns in (("gate_up_proj", 2 * p, d), ("down_proj", d, p)):
        blocks = (model.experts, rows, columns // _MXFP4_BLOCK)
        yield PlannedTensor(f"{module}.{name}_blocks", "U8", (*blocks, _MXFP4_BLOCK // 2))
        yield PlannedTensor(f"{module}.{name}_scales", "U8", blocks)
