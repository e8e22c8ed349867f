"""Small checkpoints for the tests, written with the safetensors library."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

QWEN = {
    "model_type": "qwen2_moe",
    "num_experts": 3,
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "moe_intermediate_size": 5,
}


def write_checkpoint(
    root: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], shards: int = 1
) -> Path:
    """Save `tensors` in `shards` files (an index file only if several) and config.json."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, root / "model.safetensors")
        return root
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(part, root / name)
        weight_map |= dict.fromkeys(part, name)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return root


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal values that differ from one seed and shape to the next."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def qwen_tensors(
    *, layers: int = 2, experts: int = 3, p: int = 5, d: int = 8, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Experts, shared expert, router and dense MLP names of qwen2_moe."""
    tensors = {"model.embed_tokens.weight": random_tensor(7, d, dtype=dtype)}
    for layer in range(layers):
        mlp = f"model.layers.{layer}.mlp"
        tensors[f"{mlp}.gate.weight"] = random_tensor(experts, d, dtype=dtype)
        tensors[f"{mlp}.shared_expert_gate.weight"] = random_tensor(1, d, dtype=dtype)
        for part, size in [("shared_expert", 2 * p)] + [
            (f"experts.{e}", p) for e in range(experts)
        ]:
            for family in ("gate", "up", "down"):
                seed = zlib.crc32(f"{layer} {part} {family}".encode())
                shape = (d, size) if family == "down" else (size, d)
                name = f"{mlp}.{part}.{family}_proj.weight"
                tensors[name] = random_tensor(*shape, dtype=dtype, seed=seed)
    return tensors
