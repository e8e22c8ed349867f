"""Small checkpoints of every kind of layout, written by hand from the published descriptions."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

E, P, D, LAYERS = 4, 32, 64, 2
FP8_P, FP8_D = 136, 160

KINDS = {
    "B": "mixtral",
    "C": "granitemoe",
    "D": "llama4_text",
    "E": "gpt_oss",
    "F": "dbrx",
    "fp8": "deepseek_v3",
    "mxfp4": "gpt_oss",
}
_MODULES = {
    "B": "block_sparse_moe.experts",
    "C": "block_sparse_moe",
    "D": "feed_forward.experts",
    "E": "mlp.experts",
    "F": "ffn.experts.mlp",
    "fp8": "mlp.experts",
    "mxfp4": "mlp.experts",
}


def write_layout(folder: Path, kind: str) -> Path:
    """A checkpoint of `kind` in two shards, a layer each, with a router beside the experts."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    weight_map = {}
    for layer in range(LAYERS):
        root = "transformer.blocks" if kind == "F" else "model.layers"
        prefix = f"{root}.{layer}.{_MODULES[kind]}"
        tensors = _experts(prefix, kind, generator)
        tensors[f"{root}.{layer}.router.weight"] = torch.randn(E, D, generator=generator)
        name = f"model-{layer + 1:05d}-of-{LAYERS:05d}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(_config(kind)))
    return folder


def _experts(prefix: str, kind: str, generator: torch.Generator) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 0.1).to(torch.bfloat16)

    if kind == "B":
        return {
            f"{prefix}.{e}.{w}.weight": normal(*((D, P) if w == "w2" else (P, D)))
            for e in range(E)
            for w in ("w1", "w2", "w3")
        }
    if kind == "C":
        return {
            f"{prefix}.input_linear.weight": normal(E, 2 * P, D),
            f"{prefix}.output_linear.weight": normal(E, D, P),
        }
    if kind in "DE":
        return {
            f"{prefix}.gate_up_proj": normal(E, D, 2 * P),
            f"{prefix}.down_proj": normal(E, P, D),
        }
    if kind == "F":
        return {f"{prefix}.{w}": normal(E * P, D) for w in ("w1", "v1", "w2")}
    if kind == "fp8":
        return _fp8(prefix, generator)
    return {
        **_mxfp4(f"{prefix}.gate_up_proj", 2 * P, D, generator),
        **_mxfp4(f"{prefix}.down_proj", D, P, generator),
    }


def _fp8(prefix: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Experts and one attention projection, with a scale for every 128 x 128 block."""
    shapes = {
        f"{prefix}.{e}.{family}_proj": (FP8_P, FP8_D) for e in range(E) for family in ("up", "gate")
    }
    shapes |= {f"{prefix}.{e}.down_proj": (FP8_D, FP8_P) for e in range(E)}
    shapes[prefix.replace("mlp.experts", "self_attn.o_proj")] = (FP8_D, 2 * FP8_D)
    tensors = {}
    for name, (rows, columns) in shapes.items():
        blocks = (-(-rows // 128), -(-columns // 128))
        values = torch.randn(rows, columns, generator=generator)
        tensors[f"{name}.weight"] = values.to(torch.float8_e4m3fn)
        tensors[f"{name}.weight_scale_inv"] = torch.rand(blocks, generator=generator) * 0.1 + 0.05
    return tensors


def _mxfp4(name: str, rows: int, columns: int, generator: torch.Generator) -> dict[str, Tensor]:
    groups = columns // 32
    blocks = torch.randint(0, 256, (E, rows, groups, 16), generator=generator).to(torch.uint8)
    scales = torch.randint(120, 124, (E, rows, groups), generator=generator).to(torch.uint8)
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}


def _config(kind: str) -> dict[str, object]:
    p, d = (FP8_P, FP8_D) if kind == "fp8" else (P, D)
    config: dict[str, object] = {
        "model_type": KINDS[kind],
        "hidden_size": d,
        "intermediate_size": p,
        "moe_intermediate_size": p,
        "num_local_experts": E,
        "num_experts": E,
        "n_routed_experts": E,
        "num_hidden_layers": LAYERS,
        "torch_dtype": "bfloat16",
        "ffn_config": {"moe_num_experts": E, "ffn_hidden_size": p},
        "d_model": d,
    }
    if kind == "fp8":
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    if kind == "mxfp4":
        config["quantization_config"] = {"quant_method": "mxfp4"}
    return config


def stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= load_file(shard)
    return found
