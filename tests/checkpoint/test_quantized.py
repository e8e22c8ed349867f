"""Quantised experts of every format equal what the format's own library makes of them.

compressed-tensors rounds each product to the dtype of the scales; ours is exact in float32, so the
same rounding of ours must give the library's bits, and with float32 scales no rounding is left.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from tiny_files import random_tensor, write_checkpoint
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from globe_stream.checkpoint.index import ExpertIndex, Selection, open_index
from globe_stream.checkpoint.reader import ExpertReader, read_expert
from globe_stream.errors import InputError

E, P, D = 3, 64, 96
KIMI = {"model_type": "kimi_k2", "n_routed_experts": E, "num_hidden_layers": 1}
Parts = dict[str, Tensor]

INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
INT4_CHANNEL = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
NVFP4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group",
         "group_size": 16, "scale_dtype": torch.float8_e4m3fn}  # fmt: skip
MXFP4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32,
         "scale_dtype": torch.uint8}  # fmt: skip
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
FORMATS: dict[str, tuple[str, dict[str, Any], str]] = {
    "int4": ("pack-quantized", INT4, "INT4"),
    "int4-channel": ("pack-quantized", INT4_CHANNEL, "INT4"),
    "int8": ("int-quantized", INT8, "INT8"),
    "nvfp4": ("nvfp4-pack-quantized", NVFP4, "NVFP4"),
    "mxfp4": ("mxfp4-pack-quantized", MXFP4, "MXFP4"),
    "fp8-tensor": ("float-quantized", FP8 | {"strategy": "tensor"}, "F8_E4M3"),
    "fp8-channel": ("float-quantized", FP8 | {"strategy": "channel"}, "F8_E4M3"),
    "fp8-block": (
        "float-quantized", FP8 | {"strategy": "block", "block_structure": [128, 128]}, "F8_E4M3"
    ),
}  # fmt: skip


def _scale(weight: Tensor, args: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """Scales that use the format's range, of the shape its strategy wants."""
    top = {("int", 4): 7.0, ("int", 8): 127.0, ("float", 4): 6.0, ("float", 8): 448.0}
    limit = top[args["type"], args["num_bits"]]
    if args["strategy"] == "tensor":
        return (weight.abs().max() / limit).reshape(1).to(dtype)
    if args["strategy"] == "channel":
        return (weight.abs().amax(1, keepdim=True) / limit).to(dtype)
    if args["strategy"] == "block":
        shape = (-(-weight.shape[0] // 128), -(-weight.shape[1] // 128))
        return (weight.abs().max() / limit * torch.linspace(1, 2, shape[0] * shape[1])).view(shape)
    groups = weight.unflatten(1, (-1, args["group_size"]))
    return (groups.abs().amax(2) / limit).to(dtype)


def _compress(weight: Tensor, name: str, dtype: torch.dtype) -> tuple[Parts, Tensor]:
    """The parts that the library stores, and what it makes of them again."""
    kind, args, _ = FORMATS[name]
    compressor = BaseCompressor.load_from_registry(kind)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    state = {"weight": weight, "weight_scale": _scale(weight, args, dtype)}
    if name == "nvfp4":
        state["weight_global_scale"] = (2688.0 / weight.abs().max()).reshape(1)
        state["weight_scale"] = (state["weight_scale"] * state["weight_global_scale"]).to(
            torch.float8_e4m3fn
        ).float()  # fmt: skip
    if name == "mxfp4":
        state["weight_scale"] = torch.exp2(state["weight_scale"].float().log2().ceil())
    stored = compressor.compress(state, scheme)
    return dict(stored), compressor.decompress(dict(stored), scheme)["weight"]


def _experts(p: int, d: int) -> dict[str, Tensor]:
    """Every matrix by the name before its last dot."""
    root, found = "model.layers.0.mlp", {}
    for i, (part, size) in enumerate(
        [(f"experts.{e}", p) for e in range(E)] + [("shared_experts", 2 * p)]
    ):
        for j, role in enumerate(("gate", "up", "down")):
            shape = (d, size) if role == "down" else (size, d)
            found[f"{root}.{part}.{role}_proj"] = random_tensor(*shape, seed=10 * i + j)
    return found


def _write(
    root: Path, name: str, dtype: torch.dtype, p: int = P, d: int = D
) -> tuple[ExpertIndex, dict[str, Tensor]]:
    tensors, expected = {}, {}
    for linear, weight in _experts(p, d).items():
        parts, expected[linear] = _compress(weight, name, dtype)
        tensors |= {f"{linear}.{part}": value for part, value in parts.items()}
    args = {key: str(value) if key == "scale_dtype" else value
            for key, value in FORMATS[name][1].items()}  # fmt: skip
    config = KIMI | {"quantization_config": {"config_groups": {"group_0": {"weights": args}}}}
    return open_index(str(write_checkpoint(root, tensors, config, 4))), expected


def _linear(tensor: str) -> str:
    return tensor.rsplit(".", 1)[0]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_equals_compressed_tensors(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    index, expected = _write(tmp_path, name, dtype)
    assert index.summary().families["up"].dtype == FORMATS[name][2]
    for experts in (*index.experts.values(), *index.shared.values()):
        for expert in experts:
            library = expected[_linear(expert.storage.weight.tensor)]
            found = read_expert(expert)
            assert found.shape == expert.shape == library.shape
            assert torch.equal(found.to(library.dtype), library)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [[0, 63, 3], [5, 6, 7]], ids=str)
def test_rows_and_blocks_of_shared_experts(tmp_path: Path, name: str, rows: list[int]) -> None:
    index, _ = _write(tmp_path, name, torch.float32)
    families = ("up", "gate", "down")
    chosen = index.select(Selection(families, include_shared=True))
    for family in families:
        whole = read_expert(index.shared[family][0])
        parts = whole.split(P, dim=1 if family == "down" else 0)
        experts = chosen.experts[family]
        for expert, part in zip(experts[E:], parts, strict=True):
            assert torch.equal(read_expert(expert), part)
        with ExpertReader(experts, 2, rows=rows) as reader:
            for batch in reader.batches():
                for position, weights in zip(batch.positions, batch.weights, strict=True):
                    assert torch.equal(weights, read_expert(experts[position])[rows])
            slots, weights, _ = reader._buffers
        estimated = max(ExpertReader.buffer_bytes(expert, 2, rows) for expert in experts)
        assert slots.to_decode().nbytes + weights.nbytes <= estimated
        assert estimated <= max(ExpertReader.buffer_bytes(e, 2, len(rows)) for e in experts)


V4 = {"model_type": "deepseek_v4", "n_routed_experts": E, "num_hidden_layers": 1,
      "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128],
                              "scale_fmt": "ue8m0"}}  # fmt: skip


def _exponents(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    bytes_ = torch.randint(110, 130, shape, generator=generator, dtype=torch.uint8)
    return bytes_.view(torch.float8_e8m0fnu)


@pytest.mark.parametrize("packed", [True, False], ids=["fp4", "fp8"])
def test_deepseek_v4_equals_the_library(tmp_path: Path, packed: bool) -> None:
    """Routed experts of the release are fp4 by groups of 32, shared ones fp8 by blocks."""
    library = Fp8Dequantize(SimpleNamespace())
    p, d, tensors, expected = 128, 256, {}, {}
    for i, part in enumerate([*(f"experts.{e}" for e in range(E)), "shared_experts"]):
        for j, role in enumerate(("w1", "w2", "w3")):
            rows, columns = (d, p) if role == "w2" else (p, d)
            name, seed = f"layers.0.ffn.{part}.{role}", 10 * i + j
            if packed and part != "shared_experts":
                weight = torch.randint(-128, 128, (rows, columns // 2), dtype=torch.int8)
                scale = _exponents(rows, columns // 32, seed=seed)
            else:
                weight = random_tensor(rows, columns, seed=seed).mul(50).to(torch.float8_e4m3fn)
                scale = _exponents(rows // 128, columns // 128, seed=seed)
            tensors[f"{name}.weight"], tensors[f"{name}.scale"] = weight, scale
            expected[name] = library._dequantize_one(weight, scale, torch.float32)
    tensors["mtp.0.ffn.experts.0.w1.weight"] = torch.zeros(p, d // 2, dtype=torch.int8)
    index = open_index(str(write_checkpoint(tmp_path, tensors, V4, 3)))
    assert index.summary().families["up"].dtype == ("MXFP4" if packed else "F8_E4M3")
    assert index.summary().mtp_layers_left_out == 1
    for experts in (*index.experts.values(), *index.shared.values()):
        for expert in experts:
            library_made = expected[_linear(expert.storage.weight.tensor)]
            assert torch.equal(read_expert(expert), library_made)


def test_modelopt_nvfp4_is_the_formula(tmp_path: Path) -> None:
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    tensors, expected = {}, {}
    for i, name in enumerate(_experts(P, D)):
        rows, columns = _experts(P, D)[name].shape
        generator = torch.Generator().manual_seed(i)
        packed = torch.randint(0, 256, (rows, columns // 2), generator=generator).to(torch.uint8)
        scale = random_tensor(rows, columns // 16, seed=i).abs().to(torch.float8_e4m3fn)
        second = torch.tensor(0.003 * (i + 1))
        tensors |= {f"{name}.weight": packed, f"{name}.weight_scale": scale,
                    f"{name}.weight_scale_2": second,
                    f"{name}.input_scale": second + 1}  # fmt: skip
        values = table[torch.stack([packed & 15, packed >> 4], 2).flatten(1).long()]
        factors = (scale.float() * second).repeat_interleave(16, 1)
        expected[name] = values * factors
    index = open_index(str(write_checkpoint(tmp_path, tensors, KIMI)))
    for experts in index.experts.values():
        for expert in experts:
            assert expert.dtype == "NVFP4"
            assert torch.equal(read_expert(expert), expected[_linear(expert.storage.weight.tensor)])


STEP = {"model_type": "step3p5", "n_routed_experts": E, "num_hidden_layers": 1}
INKLING = {"model_type": "inkling2_text", "n_routed_experts": E, "num_hidden_layers": 1}


@pytest.mark.parametrize("kind", ["C", "G", "H"])
def test_stacks_of_fp8(tmp_path: Path, kind: str) -> None:
    """Blocks of 128 x 128 in the kinds C and G; with H, interleaved, groups of 32 in a row."""
    p, d = 128, 256
    block = (1, 32) if kind == "H" else (128, 128)
    names = {"C": ("gate_up_proj", "down_proj", "_scale_inv"),
             "G": ("gate_proj.weight", "up_proj.weight", "down_proj.weight", "_scale_inv"),
             "H": ("w13_weight", "w2_weight", "_scale")}[kind]  # fmt: skip
    module = "moe" if kind == "G" else "mlp.experts"
    tensors, whole = {}, {}
    for i, name in enumerate(names[:-1]):
        down = name.startswith(("down", "w2"))
        height = 2 * p if name in ("gate_up_proj", "w13_weight") else p
        rows, columns = (d, p) if down else (height, d)
        weight = random_tensor(E, rows, columns, seed=i).mul(50).to(torch.float8_e4m3fn)
        shape = (E, rows // block[0], columns // block[1])
        scale = random_tensor(*shape, seed=9 + i).abs()
        stored = scale
        if kind == "H":
            stored = torch.randint(115, 130, shape, dtype=torch.uint8)
            scale = torch.exp2(stored.float() - 127)
        tensors[f"model.layers.0.{module}.{name}"] = weight
        tensors[f"model.layers.0.{module}.{name}{names[-1]}"] = stored
        expanded = scale.repeat_interleave(block[0], 1).repeat_interleave(block[1], 2)
        whole[name] = weight.float() * expanded
    if kind == "C":
        both, down = whole.values()
        expected = {"gate": both[:, :p], "up": both[:, p:], "down": down}
    elif kind == "H":
        both, down = whole.values()
        expected = {"gate": both[:, 0::2], "up": both[:, 1::2], "down": down}
    else:
        expected = dict(zip(("gate", "up", "down"), whole.values(), strict=True))
    config = {"C": KIMI, "G": STEP, "H": INKLING}[kind]
    index = open_index(str(write_checkpoint(tmp_path, tensors, config, 2)))
    assert index.layout.startswith(f"{kind} (")
    for family, experts in index.experts.items():
        for expert in experts:
            assert torch.equal(read_expert(expert), expected[family][expert.expert])


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("weight_zero_point", torch.zeros(8, 3, dtype=torch.int32), "weight_zero_point holds zero"),
        ("weight_g_idx", torch.zeros(D, dtype=torch.int32), "weight_g_idx holds an order"),
        ("weight_scale", None, r"up_proj.weight_packed \(I32\) has no scale beside it"),
        ("weight_scale", torch.zeros(P, 5).bfloat16(), r"weight_scale is BF16 \[64, 5\] beside"),
        ("weight_scale", torch.zeros(P, 3).long(), r"weight_scale is I64 \[64, 3\] beside"),
        ("weight_packed", None, "has no weight beside it"),
        ("weight_packed", torch.zeros(P, 12, dtype=torch.int64), "has the dtype I64"),
        ("weight", torch.zeros(P, D), "does not belong beside"),
    ],
)
def test_int4_that_is_not_as_released(
    tmp_path: Path, part: str, value: Tensor | None, message: str
) -> None:
    tensors = {}
    for linear, weight in _experts(P, D).items():
        parts, _ = _compress(weight, "int4", torch.bfloat16)
        tensors |= {f"{linear}.{name}": tensor for name, tensor in parts.items()}
    name = f"model.layers.0.mlp.experts.1.up_proj.{part}"
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = value
    with pytest.raises(InputError, match=message):
        open_index(str(write_checkpoint(tmp_path, tensors, KIMI)))


def test_other_widths_are_refused(tmp_path: Path) -> None:
    groups = {"group_0": {"weights": {"num_bits": 8}}}
    config = KIMI | {"quantization_config": {"config_groups": groups}}
    tensors = {}
    for linear, weight in _experts(P, D).items():
        parts, _ = _compress(weight, "int4", torch.bfloat16)
        tensors |= {f"{linear}.{name}": tensor for name, tensor in parts.items()}
    with pytest.raises(InputError, match="weight_packed holds packed integers of 8 bits"):
        open_index(str(write_checkpoint(tmp_path, tensors, config)))
