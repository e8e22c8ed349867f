"""Every model type: what is read from disk computes what the library's module computes.

Each type is saved by the library itself, and where its layout on disk is per expert also fused, as
released checkpoints of the newer types are; in one file and in many, in bf16 and fp32, with p = d
and 2p = d, where no shape tells an orientation from its transpose.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_files import write_checkpoint
from torch import Tensor, nn
from zoo import ARCHITECTURES, HIDDEN, TOKENS, memory_experts, shared_modules, tiny_model

from globe_stream.checkpoint.index import ExpertIndex, open_index
from globe_stream.checkpoint.layouts import MODEL_TYPES
from globe_stream.checkpoint.reader import read_expert
from globe_stream.errors import InputError

SAME_AS = {"kimi_k2": "deepseek_v3", "qwen3_vl_moe_text": "qwen3_vl_moe"}
pytestmark = pytest.mark.filterwarnings("ignore:Casting complex values")
FUSED = [name for name in ARCHITECTURES if set(MODEL_TYPES[name].kinds) & set("ABC")]
CASES = [
    pytest.param(HIDDEN, torch.bfloat16, 1, id="p=d-bf16-one-file"),
    pytest.param(HIDDEN // 2, torch.float32, 9, id="2p=d-fp32-many-files"),
    pytest.param(HIDDEN // 2, torch.bfloat16, 9, id="2p=d-bf16-many-files"),
    pytest.param(HIDDEN, torch.float32, 1, id="p=d-fp32-one-file"),
]


def test_every_registered_type_is_here() -> None:
    assert set(MODEL_TYPES) == set(ARCHITECTURES) | set(SAME_AS)
    for name, other in SAME_AS.items():
        assert MODEL_TYPES[name] == MODEL_TYPES[other]


def _activation(model_type: str) -> Callable[[Tensor, Tensor], Tensor]:
    """From gate and up to what down multiplies: SiLU, but for gpt-oss with limits and an offset."""
    if model_type == "gpt_oss":
        return lambda gate, up: (
            (up.clamp(-7, 7) + 1) * gate.clamp(max=7) * torch.sigmoid(1.702 * gate.clamp(max=7))
        )
    return lambda gate, up: torch.nn.functional.silu(gate) * up


def _run(matrices: dict[str, Tensor], x: Tensor, model_type: str) -> Tensor:
    hidden = _activation(model_type)(x @ matrices["gate"].T, x @ matrices["up"].T)
    return hidden @ matrices["down"].T


def _check(index: ExpertIndex, model: nn.Module, model_type: str) -> None:
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))
    stored = {
        (family, expert.layer, expert.expert): expert
        for family, experts in index.experts.items()
        for expert in experts
    }
    count = 0
    with torch.no_grad():
        for expert in memory_experts(model):
            matrices = {
                family: read_expert(stored[family, expert.layer, expert.expert])
                for family in ("gate", "up", "down")
            }
            expected = expert.run(x)
            assert expected.std() > 0.01
            found = _run(matrices, x, model_type)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            count += 3
    assert len(stored) == count > 0


def _check_shared(index: ExpertIndex, model: nn.Module, model_type: str) -> None:
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(2))
    modules = shared_modules(model)
    whole: dict[int, dict[str, Tensor]] = {layer: {} for layer in modules}
    for family, experts in index.shared.items():
        for expert in experts:
            whole[expert.layer][family] = read_expert(expert)
    with torch.no_grad():
        for layer, module in modules.items():
            expected = module.float()(x)
            found = _run(whole[layer], x, model_type)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize(("p", "dtype", "shards"), CASES)
def test_saved_by_the_library(
    tmp_path: Path, model_type: str, p: int, dtype: torch.dtype, shards: int
) -> None:
    model = tiny_model(model_type, p, dtype)
    model.to(dtype).save_pretrained(tmp_path, max_shard_size="1GB" if shards == 1 else "8KB")
    index = open_index(str(tmp_path))
    assert (len(index.files) == 1) == (shards == 1)
    assert index.layout[0] in MODEL_TYPES[model_type].kinds
    _check(index, model, model_type)
    _check_shared(index, model, model_type)


@pytest.mark.parametrize("model_type", FUSED)
@pytest.mark.parametrize(("p", "dtype", "shards"), CASES[:2])
def test_fused(tmp_path: Path, model_type: str, p: int, dtype: torch.dtype, shards: int) -> None:
    """gate_up (E, 2p, d) and down (E, d, p), as the library keeps them in memory."""
    model = tiny_model(model_type, p, dtype).to(dtype)
    config = json.loads(model.config.to_json_string())
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    index = open_index(str(write_checkpoint(tmp_path, tensors, config, shards)))
    assert index.layout.startswith("C (")
    _check(index, model, model_type)


@pytest.mark.parametrize("p", [HIDDEN, HIDDEN // 2, 12])
def test_qwen3_vl_moe_as_released(tmp_path: Path, p: int) -> None:
    """The released files are transposed, the library's own are not; shapes of the pair tell."""
    model = tiny_model("qwen3_vl_moe", p, torch.float32).to(torch.float32)
    tensors = {
        name: tensor.transpose(1, 2) if ".mlp.experts." in name else tensor
        for name, tensor in model.state_dict().items()
    }
    config = json.loads(model.config.to_json_string())
    index = open_index(str(write_checkpoint(tmp_path, tensors, config)))
    assert index.layout.startswith("D (")
    _check(index, model, "qwen3_vl_moe")


def test_layouts_that_contradict_their_type_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama4_text", HIDDEN // 2, torch.float32).to(torch.float32)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {
        name: tensor.transpose(1, 2).contiguous() if ".feed_forward.experts." in name else tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"experts.gate_up_proj .* which fits none of the layouts"):
        open_index(str(tmp_path))
