"""patch_model against the dense export, and its round trip through save_pretrained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sample_runs import Recipe, make_run, tiny_of_type
from support import slow

from globe_stream.errors import InputError
from globe_stream.export.dense import export_dense
from globe_stream.export.factors import export_factors
from globe_stream.inference.patch import patch_model
from globe_stream.inference.pretrained import from_pretrained

TOKENS = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(5))


def _load(path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **options).eval()


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.float()


@pytest.fixture(scope="module")
def factors(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("factors") / "out"
    export_factors(run, out, dtype="fp32")
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(per_layer=True, activation="tanh", lam=1.0),
        Recipe(families=("up",), include_shared=True),
        Recipe(families=("gate",), max_experts=7),
    ],
    ids=["global", "layers", "shared", "some"],
)
def test_patched_equals_dense_export(tmp_path: Path, model: Path, recipe: Recipe) -> None:
    run = make_run(tmp_path / "run", model, recipe)
    export_factors(run, tmp_path / "factors", dtype="fp32")
    export_dense(run, tmp_path / "dense", dtype="fp32")
    dense = _logits(_load(tmp_path / "dense"))
    patched = _logits(patch_model(_load(model), tmp_path / "factors"))
    torch.testing.assert_close(patched, dense, rtol=1e-4, atol=2e-4)
    assert (dense - _logits(_load(model))).abs().max() > 0.01


@pytest.mark.parametrize("kind", [slow("mixtral"), "gpt_oss", slow("olmoe")])
def test_other_types_with_their_own_gates_and_biases(tmp_path: Path, kind: str) -> None:
    other = tiny_of_type(tmp_path / "model", kind)
    run = make_run(tmp_path / "run", other)
    export_factors(run, tmp_path / "factors", dtype="fp32")
    export_dense(run, tmp_path / "dense", dtype="fp32")
    dense = _logits(_load(tmp_path / "dense"))
    patched = _logits(patch_model(_load(other), tmp_path / "factors"))
    torch.testing.assert_close(patched, dense, rtol=1e-4, atol=2e-4)
    assert (dense - _logits(_load(other))).abs().max() > 0.01


def test_bfloat16_agrees_to_its_accuracy(
    tmp_path: Path, model: Path, run: Path, factors: Path
) -> None:
    export_dense(run, tmp_path / "dense")
    dense = _logits(_load(tmp_path / "dense", torch.bfloat16))
    exact = _logits(_load(tmp_path / "dense"))
    patched = _logits(patch_model(_load(model, torch.bfloat16), factors))
    rounding = (dense - exact).norm()
    assert (patched - dense).norm() < 2 * rounding
    assert rounding < 0.05 * exact.norm()


def test_what_is_left_alone(model: Path, factors: Path) -> None:
    before = {name: value.clone() for name, value in _load(model).state_dict().items()}
    patched = patch_model(_load(model), factors)
    after = patched.state_dict()
    kept = [name for name in before if "gate_up_proj" not in name]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert not any("gate_up_proj" in name for name in after)
    assert any("down_proj" in name for name in kept)


def test_save_and_load_round_trip(tmp_path: Path, model: Path, factors: Path) -> None:
    from transformers import AutoModelForCausalLM

    patched = patch_model(_load(model), factors)
    expected = _logits(patched)
    patched.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    loaded = from_pretrained(tmp_path / "saved", cache="1MiB", dtype=torch.float32).eval()
    assert torch.equal(_logits(loaded), expected)
    assert loaded.globe_cache.budget == 1 << 20
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(_logits(again.eval()), expected)
    assert {name: value.dtype for name, value in again.state_dict().items()} == {
        name: value.dtype for name, value in patched.state_dict().items()
    }


def test_factors_of_another_model_are_refused(factors: Path) -> None:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    other = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=256,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=8,
            num_experts=6,
            num_experts_per_tok=2,
        )
    )
    with pytest.raises(InputError, match="24 x 32; layer 0 of the model has 6 of 8 x 16"):
        patch_model(other, factors)


def test_offloaded_model_can_be_patched(tmp_path: Path, model: Path, factors: Path) -> None:
    expected = _logits(patch_model(_load(model), factors))
    places = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "disk",
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    offloaded = _load(model, device_map=places, offload_folder=str(tmp_path / "offload"))
    with pytest.raises(InputError, match="offload_folder"):
        patch_model(offloaded, factors)
    patched = patch_model(offloaded, factors, offload_folder=tmp_path / "new")
    assert patched.model.layers[0].mlp.experts.up_adapters.device.type == "meta"
    torch.testing.assert_close(_logits(patched), expected, rtol=1e-5, atol=1e-5)


def test_saved_patched_model_loads_offloaded(tmp_path: Path, model: Path, factors: Path) -> None:
    patched = patch_model(_load(model), factors)
    expected = _logits(patched)
    patched.save_pretrained(tmp_path / "saved")
    places = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "disk",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
        "globe_banks": "cpu",
    }
    loaded = from_pretrained(
        tmp_path / "saved",
        dtype=torch.float32,
        device_map=places,
        offload_folder=str(tmp_path / "offload"),
    )
    torch.testing.assert_close(_logits(loaded), expected, rtol=1e-5, atol=1e-5)
