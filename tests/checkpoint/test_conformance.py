"""Every model type: what is read from disk computes what the library's module computes.

Each type is saved by the library itself, and where its layout on disk is per expert also fused, as
released checkpoints of the newer types are; in one file and in many, in bf16 and fp32, with p = d
and 2p = d, where no shape tells an orientation from its transpose. Not every combination is tried
of every type, but every two values of these meet.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import slow
from tiny_files import write_checkpoint
from torch import Tensor, nn
from zoo import TOKENS, memory_experts, shared_experts, tiny_model
from zoo_configs import ARCHITECTURES, HIDDEN, IN_MEMORY, NOT_FUSED, SAME_AS

from globe_stream.checkpoint.experts import ExpertMatrix, family_name
from globe_stream.checkpoint.index import ExpertIndex, open_index
from globe_stream.checkpoint.model_types import MODEL_TYPES
from globe_stream.checkpoint.reader import read_expert
from globe_stream.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Casting complex values"),
    pytest.mark.filterwarnings("ignore:.*Nested mapping"),
]
FUSED = [name for name in ARCHITECTURES if name not in NOT_FUSED]
FIRST = (HIDDEN, torch.bfloat16, 1)
"""Expert size, dtype and number of files in the fast tests."""
OTHERS = [
    (HIDDEN, torch.float32, 9),
    (HIDDEN // 2, torch.bfloat16, 9),
    (HIDDEN // 2, torch.float32, 1),
]
"""With FIRST every two values meet."""

Gated = Callable[..., Tensor]


def test_every_registered_type_is_here() -> None:
    assert set(MODEL_TYPES) == set(ARCHITECTURES) | set(SAME_AS)
    for name, other in SAME_AS.items():
        assert MODEL_TYPES[name] == MODEL_TYPES[other]


def _run(matrices: dict[str, Tensor], x: Tensor, gated: Gated) -> Tensor:
    hidden = [x @ matrices[role].T for role in ("gate", "up") if role in matrices]
    return gated(*hidden) @ matrices["down"].T


def _check(index: ExpertIndex, model: nn.Module, section: str = "") -> Gated:
    """Every routed expert of the model, read from `section`; the activation of the main ones."""
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))
    stored = {
        (expert.family, expert.layer, expert.expert): expert
        for experts in index.experts.values()
        for expert in experts
        if expert.section == section or not section
    }
    count, gated = 0, None
    with torch.no_grad():
        for expert in memory_experts(model):
            part = section or expert.section
            families = {role: family_name(role, part) for role in ("gate", "up", "down")}
            matrices = {
                role: read_expert(stored[family, expert.layer, expert.expert])
                for role, family in families.items()
                if family in index.experts
            }
            expected = expert.run(x)
            assert expected.std() > 0.01
            found = _run(matrices, x, expert.gated)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            count += len(matrices)
            gated = expert.gated
    assert len(stored) == count > 0
    assert gated is not None
    return gated


def _check_shared(index: ExpertIndex, model: nn.Module, gated: Gated) -> None:
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(2))
    modules = shared_experts(model)
    whole: dict[int, dict[int, dict[str, Tensor]]] = {layer: {} for layer in modules}
    for experts in index.shared.values():
        for expert in experts:
            whole[expert.layer].setdefault(expert.expert, {})[expert.role] = read_expert(expert)
    with torch.no_grad():
        for layer, run in modules.items():
            found = sum(_run(matrices, x, gated) for matrices in whole[layer].values())
            torch.testing.assert_close(found, run(x), rtol=1e-4, atol=1e-5)


def _saved(root: Path, model_type: str, p: int, dtype: torch.dtype, shards: int) -> None:
    model = tiny_model(model_type, p, dtype).to(dtype)
    model.save_pretrained(root, max_shard_size="1GB" if shards == 1 else "4KB")
    index = open_index(str(root))
    assert (len(index.files) == 1) == (shards == 1)
    assert index.layout[0] in MODEL_TYPES[model_type].kinds
    _check_shared(index, model, _check(index, model))


def _fused(root: Path, model_type: str, p: int, dtype: torch.dtype, shards: int) -> None:
    model = tiny_model(model_type, p, dtype).to(dtype)
    config = json.loads(model.config.to_json_string())
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    index = open_index(str(write_checkpoint(root, tensors, config, shards)))
    assert index.layout.startswith(f"{IN_MEMORY.get(model_type, 'C')} (")
    _check_shared(index, model, _check(index, model))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_model_type(tmp_path: Path, model_type: str) -> None:
    """As the library saves it, with p = d; and a name that no rule knows is refused."""
    _saved(tmp_path / "saved", model_type, *FIRST)
    _refuses_a_changed_name(tmp_path / "saved")


@pytest.mark.parametrize("model_type", FUSED[::8])
def test_fused(tmp_path: Path, model_type: str) -> None:
    """As the library holds it; all types, `test_model_type_in_other_forms`."""
    _fused(tmp_path / "fused", model_type, HIDDEN, torch.bfloat16, 5)


def _refuses_a_changed_name(root: Path) -> None:
    """One expert's tensor with another name ends in an error that says the name."""
    first: ExpertMatrix = open_index(str(root)).experts["up"][-1]
    name = first.storage.weight.tensor
    changed = name.replace("_weight", "_wait").replace("proj", "prof").replace(".w3.", ".w9.")
    changed = changed.replace(".v1", ".v7").replace(".fc1.", ".fc7.").replace("_linear", "_lin")
    assert changed != name
    tensors = load_file(root / "model.safetensors")
    tensors[changed] = tensors.pop(name)
    save_file(tensors, root / "model.safetensors")
    with pytest.raises(InputError) as caught:
        open_index(str(root))
    assert changed in str(caught.value)
    assert "matches no known layout" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_model_type_in_other_forms(tmp_path: Path, model_type: str) -> None:
    """But for the one that `test_model_type` has; the layout, too, meets every other value."""
    for p, dtype, shards in OTHERS:
        save = _fused if model_type in FUSED else _saved
        save(tmp_path / f"{p}-{shards}", model_type, p, dtype, shards)
    if model_type in FUSED:
        _saved(tmp_path / "saved", model_type, HIDDEN // 2, torch.float32, 9)


def _prefixed(root: Path, model_type: str, prefix: str) -> tuple[dict[str, Tensor], Any]:
    """Tensors of the type's tiny model as on disk, below `prefix`, and its config."""
    model = tiny_model(model_type, HIDDEN, torch.bfloat16).to(torch.bfloat16)
    model.save_pretrained(root, max_shard_size="1GB")
    tensors = load_file(root / "model.safetensors")
    named = {prefix + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return named, json.loads(model.config.to_json_string())


OUTER = {outer: inner for outer, inner in SAME_AS.items() if inner == f"{outer}_text"}


@pytest.mark.parametrize("outer", [slow(name) if k % 4 else name for k, name in enumerate(OUTER)])
def test_a_model_of_several_parts(tmp_path: Path, outer: str) -> None:
    """The text model within an image model, beside tensors that are not experts."""
    tensors, config = _prefixed(tmp_path / "text", OUTER[outer], "model.language_model.")
    tensors["model.visual.patch_embed.proj.weight"] = torch.randn(4, 4)
    config = {"model_type": outer, "text_config": config}
    index = open_index(str(write_checkpoint(tmp_path / "whole", tensors, config, 3)))
    _check(index, tiny_model(OUTER[outer], HIDDEN, torch.bfloat16))


def test_thinker_and_talker_do_not_collide(tmp_path: Path) -> None:
    """Both have experts of the same names in layers of the same numbers."""
    types = {"thinker": "qwen3_omni_moe_text", "talker": "qwen3_omni_moe_talker_text"}
    tensors, config = {}, {"model_type": "qwen3_omni_moe"}
    for part, model_type in types.items():
        found, text = _prefixed(tmp_path / part, model_type, f"{part}.model.")
        tensors |= found
        config[f"{part}_config"] = {"text_config": text}
    index = open_index(str(write_checkpoint(tmp_path / "whole", tensors, config, 3)))
    models = {part: tiny_model(types[part], HIDDEN, torch.bfloat16) for part in types}
    main = {family for family in index.experts if not family.startswith("talker_")}
    assert main == {"up", "gate", "down"}
    _check(index, models["talker"], "talker")
    alone = open_index(str(tmp_path / "thinker"))
    assert {(e.layer, e.expert) for e in index.experts["up"]} == {
        (e.layer, e.expert) for e in alone.experts["up"]
    }
    for family in sorted(main):
        for inside, expert in zip(index.experts[family], alone.experts[family], strict=True):
            torch.testing.assert_close(read_expert(inside), read_expert(expert), rtol=0, atol=0)


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
    _check(index, model)


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
