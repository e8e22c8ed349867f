"""Stacked tensors are read expert by expert: each byte once, never more than a batch ahead."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_files import random_tensor, write_checkpoint
from torch import Tensor

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.index import ExpertIndex, open_index
from globe_stream.checkpoint.read_plan import plan_read
from globe_stream.checkpoint.reader import ExpertReader, read_expert
from globe_stream.errors import InputError

E, P, D = 64, 6, 10
KINDS = {"C": "qwen3_moe", "D": "llama4_text", "E": "gpt_oss", "F": "dbrx"}


def _config(model_type: str, p: int, d: int) -> dict[str, object]:
    ffn = {"moe_num_experts": E, "ffn_hidden_size": p}
    return {"model_type": model_type, "num_local_experts": E, "intermediate_size": p,
            "moe_intermediate_size": p, "hidden_size": d, "ffn_config": ffn}  # fmt: skip


def _tensors(kind: str, gate: Tensor, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """The stacks of one layer from gate, up (E, p, d) and down (E, d, p), as `kind` stores them."""
    if kind == "F":
        root, flat = "transformer.blocks.0.ffn.experts.mlp", (-1, gate.shape[2])
        stacks = {"w1": gate.reshape(flat), "v1": up.reshape(flat),
                  "w2": down.transpose(1, 2).reshape(flat)}  # fmt: skip
        return {f"{root}.{name}": stack for name, stack in stacks.items()}
    both = torch.cat([gate, up], 1)
    if kind == "E":
        both = torch.stack([gate, up], 2).flatten(1, 2)
    if kind != "C":
        both, down = both.transpose(1, 2), down.transpose(1, 2)
    module = "feed_forward" if kind == "D" else "mlp"
    root = f"model.layers.0.{module}.experts"
    return {f"{root}.gate_up_proj": both, f"{root}.down_proj": down}


def _write(
    root: Path, kind: str, p: int = P, d: int = D, dtype: torch.dtype = torch.bfloat16
) -> tuple[ExpertIndex, dict[str, Tensor]]:
    stacks = {
        "gate": random_tensor(E, p, d, dtype=dtype, seed=1),
        "up": random_tensor(E, p, d, dtype=dtype, seed=2),
        "down": random_tensor(E, d, p, dtype=dtype, seed=3),
    }
    tensors = _tensors(kind, stacks["gate"], stacks["up"], stacks["down"])
    index = open_index(str(write_checkpoint(root, tensors, _config(KINDS[kind], p, d))))
    assert index.layout[0] == kind
    return index, stacks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [None, [0], [1, 4], [5, 0, 3], [2, 2], [0, 1, 2]], ids=str)
def test_rows_of_every_kind(tmp_path: Path, kind: str, rows: list[int] | None) -> None:
    index, stacks = _write(tmp_path, kind)
    for family, experts in index.experts.items():
        with ExpertReader(experts, 5, rows=rows) as reader:
            for batch in reader.batches():
                expected = stacks[family][batch.positions].float()
                expected = expected if rows is None else expected[:, rows]
                assert torch.equal(batch.weights, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_gate_and_up_together_read_each_byte_once(tmp_path: Path, kind: str, batch: int) -> None:
    index, stacks = _write(tmp_path, kind)
    experts = index.experts["gate"] + index.experts["up"]
    values = torch.cat([stacks["gate"], stacks["up"]]).float()
    with ExpertReader(experts, batch) as reader:
        for chunk in reader.batches():
            assert torch.equal(chunk.weights, values[chunk.positions])
        assert reader.bytes_read == 2 * E * P * D * 2
        slots, weights, _ = reader._buffers
    block = -(-2 * P * D * 2 // 64) * 64
    assert slots.to_decode().nbytes <= batch * block
    assert weights.nbytes == batch * P * D * 4


@pytest.mark.parametrize(("kind", "calls"), [("C", 1), ("F", 1), ("D", 16)])
def test_one_family_reads_its_own_bytes_once(
    tmp_path: Path, reads: Callable[[], int], kind: str, calls: int
) -> None:
    """With lines longer than a page, one family of a transposed stack leaves the other's out."""
    p, d = 2048, 16
    index, stacks = _write(tmp_path, kind, p, d)
    with ExpertReader(index.experts["up"], 1) as reader:
        for chunk in reader.batches():
            assert torch.equal(chunk.weights, stacks["up"][chunk.positions].float())
        assert reader.bytes_read == E * p * d * 2
        assert reads() == E * calls


def test_interleaved_elements_cannot_be_read_apart(
    tmp_path: Path, reads: Callable[[], int]
) -> None:
    index, _ = _write(tmp_path, "E", 2048, 16)
    with ExpertReader(index.experts["up"], 1) as reader:
        list(reader.batches())
        assert reader.bytes_read == 2 * E * 2048 * 16 * 2
        assert reads() == E


def test_one_down_stack_is_read_expert_by_expert(tmp_path: Path) -> None:
    index, _ = _write(tmp_path, "D")
    with ExpertReader(index.experts["down"], 1) as reader:
        batches = reader.batches()
        next(batches)
        next(batches)
        assert reader.bytes_read <= 3 * P * D * 2
    estimate_bytes = ExpertReader.buffer_bytes(index.experts["down"][0], 1)
    assert estimate_bytes <= P * D * (2 + 4) + 64


@pytest.mark.parametrize("kind", KINDS)
def test_scatter_is_the_inverse_of_reading(tmp_path: Path, kind: str) -> None:
    index, stacks = _write(tmp_path, kind)
    path = index.files[0]
    content = bytearray(path.read_bytes())
    for family in ("up", "gate"):
        for number, expert in enumerate(index.experts[family]):
            region = expert.storage.weight
            place = slice(region.start, region.start + region.block_bytes)
            block = torch.frombuffer(bytearray(content[place]), dtype=torch.uint8)
            region.scatter(block, stacks[family][number].float() * 3)
            content[place] = block.numpy().tobytes()
    path.write_bytes(bytes(content))
    for family, factor in (("up", 3), ("gate", 3), ("down", 1)):
        for number, expert in enumerate(index.experts[family]):
            expected = (stacks[family][number].float() * factor).bfloat16().float()
            assert torch.equal(read_expert(expert), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_offset_is_that_of_the_first_element(tmp_path: Path, kind: str) -> None:
    index, stacks = _write(tmp_path, kind)
    content = index.files[0].read_bytes()
    for family, experts in index.experts.items():
        for expert in experts:
            start = expert.storage.weight.offset
            element = torch.frombuffer(bytearray(content[start : start + 2]), dtype=torch.bfloat16)
            assert element[0] == stacks[family][expert.expert, 0, 0]


def _every_byte(expert: ExpertMatrix, rows: list[int] | None) -> list[int]:
    plan = plan_read(expert.storage.weight, rows)
    return [byte for start, length in plan.ranges for byte in range(start, start + length)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [None, [0, 3], [5, 1, 1]], ids=str)
def test_plans_name_no_byte_twice(tmp_path: Path, kind: str, rows: list[int] | None) -> None:
    index, _ = _write(tmp_path, kind)
    for experts in index.experts.values():
        for expert in experts[:2]:
            found = _every_byte(expert, rows)
            assert found == sorted(set(found))
            assert len(found) == plan_read(expert.storage.weight, rows).nbytes
            assert found[-1] < expert.storage.weight.block_bytes


@pytest.mark.parametrize("change", ["gate_up", "down", "count"])
def test_stacks_that_do_not_fit_are_refused(tmp_path: Path, change: str) -> None:
    gate, up, down = (random_tensor(E, P, D), random_tensor(E, P, D), random_tensor(E, D, P))
    tensors = _tensors("C", gate, up, down)
    name = f"model.layers.0.mlp.experts.{'gate_up_proj' if change == 'gate_up' else 'down_proj'}"
    tensors[name] = tensors[name][1:] if change == "count" else tensors[name].transpose(1, 2)
    with pytest.raises(InputError, match=r"experts.gate_up_proj has shape .* fits none"):
        open_index(str(write_checkpoint(tmp_path, tensors, _config("qwen3_moe", P, D))))


def test_a_flat_stack_needs_the_config(tmp_path: Path) -> None:
    stacks = [random_tensor(E, *shape) for shape in ((P, D), (P, D), (D, P))]
    config = _config("dbrx", P + 1, D)
    with pytest.raises(InputError, match=r"has 384 rows; config.json says 64 experts"):
        open_index(str(write_checkpoint(tmp_path, _tensors("F", *stacks), config)))
