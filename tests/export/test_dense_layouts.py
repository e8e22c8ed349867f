"""Dense export of every kind of layout, and of quantised checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from sample_layouts import KINDS, stored, write_layout
from sample_runs import Recipe, make_run, run_oracle

from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.export.dense import export_dense


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("families", [("up", "gate"), ("gate",)], ids=["both", "gate"])
def test_every_layout(tmp_path: Path, kind: str, families: tuple[str, ...]) -> None:
    model = write_layout(tmp_path / "model", kind)
    recipe = Recipe(families=families, rank=12, bases=4)
    run = make_run(tmp_path / "run", model, recipe)
    export_dense(run, tmp_path / "out")
    before, after = open_index(str(model)), open_index(str(tmp_path / "out"))
    for family in ("up", "gate", "down"):
        for position, (old, new) in enumerate(
            zip(before.experts[family], after.experts[family], strict=True)
        ):
            original = read_expert(old)
            if family in families:
                expected = run_oracle(run, family, position, original)
                found = read_expert(new).double()
                torch.testing.assert_close(found, expected, rtol=5e-3, atol=2e-3)
            else:
                assert torch.equal(read_expert(new), original.bfloat16().float())


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_quantised_sources_become_dense_consistently(tmp_path: Path, kind: str) -> None:
    model = write_layout(tmp_path / "model", kind)
    run = make_run(tmp_path / "run", model, Recipe(rank=12, bases=4))
    result = export_dense(run, tmp_path / "out")
    tensors = stored(tmp_path / "out")
    assert not [name for name in tensors if "scale" in name or "blocks" in name]
    assert {str(value.dtype) for name, value in tensors.items() if "router" not in name} == {
        "torch.bfloat16"
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    weight_map = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(weight_map["weight_map"]) == set(tensors)
    assert result.dtype == "BF16"
    assert "unquantised" in (tmp_path / "out" / "README.md").read_text()


def test_fp8_projections_that_are_no_experts_are_dequantised(tmp_path: Path) -> None:
    model = write_layout(tmp_path / "model", "fp8")
    run = make_run(tmp_path / "run", model, Recipe(rank=12, bases=4))
    export_dense(run, tmp_path / "out")
    name = "model.layers.1.self_attn.o_proj.weight"
    source = stored(model)
    scale = source[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
    rows, columns = source[name].shape
    expected = (source[name].float() * scale[:rows, :columns]).bfloat16()
    assert torch.equal(stored(tmp_path / "out")[name], expected)


def test_mxfp4_is_written_in_the_dense_layout_of_the_type(tmp_path: Path) -> None:
    """gpt_oss stores dense experts as (E, d, 2p), gate and up interleaved."""
    model = write_layout(tmp_path / "model", "mxfp4")
    run = make_run(tmp_path / "run", model, Recipe(families=("gate",), rank=12, bases=4))
    export_dense(run, tmp_path / "out")
    fused = stored(tmp_path / "out")["model.layers.1.mlp.experts.gate_up_proj"]
    assert fused.shape == (4, 64, 64)
    up = next(e for e in open_index(str(model)).experts["up"] if (e.layer, e.expert) == (1, 2))
    assert torch.equal(fused[2, :, 1::2].T.float(), read_expert(up))
