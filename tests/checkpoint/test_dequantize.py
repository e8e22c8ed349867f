"""Dequantised experts equal the library's own dequantisation, bit by bit."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_files import random_tensor, write_checkpoint
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from globe_stream.checkpoint.dequantize import Scales, decode, scale_values
from globe_stream.checkpoint.index import ExpertIndex, Selection, open_index
from globe_stream.checkpoint.reader import ExpertReader, read_expert
from globe_stream.errors import InputError

DEEPSEEK = {"model_type": "deepseek_v3", "n_routed_experts": 3, "num_hidden_layers": 2,
            "quantization_config": {"weight_block_size": [128, 128]}}  # fmt: skip
P, D = 256, 384


def _fp8(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    values = random_tensor(rows, columns, seed=seed).mul(100).to(torch.float8_e4m3fn)
    scales = random_tensor(-(-rows // 128), -(-columns // 128), seed=seed + 1).abs() / 1000
    return values, scales


def _deepseek(p: int = P, d: int = D, shared: int = P) -> dict[str, Tensor]:
    tensors = {}
    parts = [(f"experts.{e}", p) for e in range(3)] + [("shared_experts", shared)]
    for i, (part, size) in enumerate(parts):
        for j, family in enumerate(("gate", "up", "down")):
            shape = (d, size) if family == "down" else (size, d)
            name = f"model.layers.1.mlp.{part}.{family}_proj.weight"
            tensors[name], tensors[f"{name}_scale_inv"] = _fp8(*shape, seed=10 * i + j)
    tensors["model.layers.2.mlp.experts.0.gate_proj.weight"] = torch.zeros(p, d)
    return tensors


def _by_blocks(values: Tensor, scales: Tensor) -> Tensor:
    """The definition, element by element."""
    rows, columns = torch.arange(values.shape[0]) // 128, torch.arange(values.shape[1]) // 128
    return values.float() * scales[rows][:, columns]


@pytest.mark.parametrize("shards", [1, 8])
def test_fp8_equals_the_library(tmp_path: Path, shards: int) -> None:
    tensors = _deepseek()
    index = open_index(str(write_checkpoint(tmp_path, tensors, DEEPSEEK, shards)))
    assert index.summary().families["up"].dtype == "F8_E4M3"
    assert index.summary().mtp_layers_left_out == 1
    library = Fp8Dequantize(SimpleNamespace())
    for family, experts in index.experts.items():
        for expert in experts:
            name = f"model.layers.1.mlp.experts.{expert.expert}.{family}_proj.weight"
            values, scales = tensors[name], tensors[f"{name}_scale_inv"]
            expected = library._dequantize_one(values, scales, torch.float32)
            assert torch.equal(read_expert(expert), expected)
            assert expert.nbytes == P * D + 4 * 2 * 3


@pytest.mark.parametrize(("p", "d"), [(100, 50), (129, 257), (128, 127)])
@pytest.mark.parametrize("rows", [None, [0, 99, 3], [5, 6, 7]], ids=str)
def test_fp8_of_any_size_and_rows(tmp_path: Path, p: int, d: int, rows: list[int] | None) -> None:
    tensors = _deepseek(p, d, p)
    index = open_index(str(write_checkpoint(tmp_path, tensors, DEEPSEEK)))
    with ExpertReader(index.experts["up"], 2, rows=rows) as reader:
        for batch in reader.batches():
            for position, weights in zip(batch.positions, batch.weights, strict=True):
                name = f"model.layers.1.mlp.experts.{position}.up_proj.weight"
                expected = _by_blocks(tensors[name], tensors[f"{name}_scale_inv"])
                assert torch.equal(weights, expected if rows is None else expected[rows])


def test_fp8_shared_experts_whose_parts_cut_blocks(tmp_path: Path) -> None:
    p = 96
    tensors = _deepseek(p, 130, 3 * p)
    index = open_index(str(write_checkpoint(tmp_path, tensors, DEEPSEEK)))
    chosen = index.select(Selection(("up", "gate", "down"), include_shared=True))
    for family, experts in chosen.experts.items():
        name = f"model.layers.1.mlp.shared_experts.{family}_proj.weight"
        whole = _by_blocks(tensors[name], tensors[f"{name}_scale_inv"])
        parts = whole.split(p, dim=1 if family == "down" else 0)
        for expert, part in zip(experts[3:], parts, strict=True):
            assert torch.equal(read_expert(expert), part)
            if family != "down":
                with ExpertReader([expert], 1, rows=[40, 2]) as reader:
                    assert torch.equal(next(reader.batches()).weights[0], part[[40, 2]])


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("up_proj.weight_scale_inv", None, r"up_proj.weight \(F8_E4M3\) has no scale_inv beside"),
        ("up_proj.weight", None, r"up_proj.weight_scale_inv \(F32\) has no weight beside it"),
        (
            "up_proj.weight_scale_inv",
            torch.zeros(2, 2),
            r"F32 \[2, 2\] beside .* with block size \[128, 128\]",
        ),
        ("up_proj.weight_scale_inv", torch.zeros(2, 3).long(), "is I64"),
        ("up_proj.weight", torch.zeros(P, D).to(torch.float8_e5m2), "dtype F8_E5M2"),
    ],
)
def test_fp8_that_is_not_as_released(
    tmp_path: Path, name: str, tensor: Tensor | None, message: str
) -> None:
    tensors = _deepseek()
    full = f"model.layers.1.mlp.experts.1.{name}"
    del tensors[full]
    if tensor is not None:
        tensors[full] = tensor
    with pytest.raises(InputError, match=message):
        open_index(str(write_checkpoint(tmp_path, tensors, DEEPSEEK)))


def test_fp8_with_other_blocks(tmp_path: Path) -> None:
    config = DEEPSEEK | {"quantization_config": {"weight_block_size": [64, 128]}}
    with pytest.raises(InputError, match=r"block size \[64, 128\]"):
        open_index(str(write_checkpoint(tmp_path, _deepseek(), config)))


def test_stacked_fp8_without_scales_is_refused(tmp_path: Path) -> None:
    root = "model.layers.0.mlp.experts"
    tensors = {f"{root}.gate_up_proj": torch.zeros(2, 8, 4).to(torch.float8_e4m3fn),
               f"{root}.down_proj": torch.zeros(2, 4, 4).to(torch.float8_e4m3fn)}  # fmt: skip
    with pytest.raises(InputError, match=r"proj \(F8_E4M3\) has no scale_inv beside it"):
        open_index(str(write_checkpoint(tmp_path, tensors, {"model_type": "qwen3_moe"})))


E, MX_P, MX_D = 4, 64, 96
GPT_OSS = {"model_type": "gpt_oss", "num_local_experts": E, "num_hidden_layers": 1}


def _mxfp4() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {"model.layers.0.mlp.experts.gate_up_proj_bias": torch.zeros(E, 2 * MX_P)}
    for role, lines, width in (("gate_up_proj", 2 * MX_P, MX_D), ("down_proj", MX_D, MX_P)):
        name, shape = f"model.layers.0.mlp.experts.{role}", (E, lines, width // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(110, 135, shape, generator=generator, dtype=torch.uint8)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
    return tensors


def _library(tensors: dict[str, Tensor], role: str) -> Tensor:
    """(E, in, out) in float32, which holds every mxfp4 value exactly."""
    name = f"model.layers.0.mlp.experts.{role}"
    blocks, scales = tensors[f"{name}_blocks"], tensors[f"{name}_scales"]
    return convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.float32)


def _expected(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    both = _library(tensors, "gate_up_proj").transpose(1, 2)
    down = _library(tensors, "down_proj").transpose(1, 2)
    return {"gate": both[:, 0::2], "up": both[:, 1::2], "down": down}


@pytest.fixture(params=[1, 5])
def gpt_oss(request: pytest.FixtureRequest, tmp_path: Path) -> ExpertIndex:
    return open_index(str(write_checkpoint(tmp_path, _mxfp4(), GPT_OSS, request.param)))


def test_mxfp4_equals_the_library(gpt_oss: ExpertIndex) -> None:
    expected = _expected(_mxfp4())
    assert "mxfp4" in gpt_oss.layout
    for family, experts in gpt_oss.experts.items():
        assert [expert.dtype for expert in experts] == ["MXFP4"] * E
        for expert in experts:
            assert torch.equal(read_expert(expert), expected[family][expert.expert])
            assert expert.nbytes == MX_P * MX_D * 17 // 32


@pytest.mark.parametrize("rows", [[0], [63, 1, 2], [4, 6, 8]], ids=str)
def test_mxfp4_rows(gpt_oss: ExpertIndex, rows: list[int]) -> None:
    expected = _expected(_mxfp4())
    for family in ("gate", "up", "down"):
        with ExpertReader(gpt_oss.experts[family], 3, rows=rows) as reader:
            for batch in reader.batches():
                assert torch.equal(batch.weights, expected[family][batch.positions][:, rows])


def test_mxfp4_gate_and_up_share_their_reads(gpt_oss: ExpertIndex) -> None:
    with ExpertReader(gpt_oss.experts["gate"] + gpt_oss.experts["up"], 1) as reader:
        list(reader.batches())
        assert reader.bytes_read == 2 * E * MX_P * MX_D * 17 // 32


def test_every_byte_and_scale_of_mxfp4() -> None:
    """Against the definition: value = table[nibble] 2^(scale - 127), low nibble first."""
    blocks = torch.arange(256, dtype=torch.uint8).view(16, 16).repeat(16, 1)
    scales = torch.arange(254, dtype=torch.uint8).view(-1, 1)
    blocks = blocks.repeat(1, 1)[:254]
    out = torch.empty(254, 32)
    values = scale_values(scales, "U8")
    decode(out, blocks, "MXFP4", Scales(values, torch.arange(254), 32))
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    table += [-value for value in table]
    for row in range(254):
        for byte in range(16):
            value = int(blocks[row, byte])
            for k, nibble in enumerate((value & 15, value >> 4)):
                exact = table[nibble] * 2.0 ** (row - 127)
                expected = float(torch.tensor(exact, dtype=torch.float64).float())
                assert float(out[row, 2 * byte + k]) == expected


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("_scales", None, r"gate_up_proj_blocks \(U8\) has no scales beside it"),
        ("_blocks", None, r"gate_up_proj_scales \(U8\) has no blocks beside it"),
        ("_scales", torch.zeros(E, 2 * MX_P, 4, dtype=torch.uint8), "no mxfp4 blocks and scales"),
        ("_blocks", torch.zeros(E, 2 * MX_P, 3, 8, dtype=torch.uint8), "no mxfp4 blocks and"),
        ("_blocks", torch.zeros(E, 2 * MX_P, 3, 16), "no mxfp4 blocks and scales"),
    ],
)
def test_mxfp4_that_is_not_as_released(tmp_path: Path, part: str, value: Any, message: str) -> None:
    tensors = _mxfp4()
    name = f"model.layers.0.mlp.experts.gate_up_proj{part}"
    del tensors[name]
    if value is not None:
        tensors[name] = value
    with pytest.raises(InputError, match=message):
        open_index(str(write_checkpoint(tmp_path, tensors, GPT_OSS)))


@pytest.mark.parametrize("dtype", ["fp8", "mxfp4"])
@pytest.mark.parametrize("rows", [None, [0, 2, 1]])
def test_buffer_bytes_cover_what_is_allocated(
    tmp_path: Path, dtype: str, rows: list[int] | None
) -> None:
    tensors, config = (_deepseek(), DEEPSEEK) if dtype == "fp8" else (_mxfp4(), GPT_OSS)
    index = open_index(str(write_checkpoint(tmp_path, tensors, config)))
    with ExpertReader(index.experts["up"], 2, rows=rows) as reader:
        next(reader.batches())
        slots, weights, _ = reader._buffers
        allocated = slots.to_decode().nbytes + weights.nbytes
    priced = ExpertReader.buffer_bytes(index.experts["up"][0], 2, rows)
    assert allocated <= priced
    if rows is not None:
        assert priced <= ExpertReader.buffer_bytes(index.experts["up"][0], 2, len(rows))


def test_decoding_is_deterministic() -> None:
    values, scales = _fp8(300, 200, 1)
    first, second = torch.empty(300, 200), torch.empty(300, 200)
    for out in (first, second):
        decode(out, values, "F8_E4M3", Scales(scales, torch.arange(300) // 128, 128))
    assert torch.equal(first, second)
    assert torch.equal(first, _by_blocks(values, scales))
