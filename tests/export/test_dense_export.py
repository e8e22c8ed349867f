"""`export --format dense` against the definition, transformers and the source's bytes."""

import json
from pathlib import Path

import pytest
import torch
from sample_runs import Recipe, make_run, run_oracle, tiny_model

from globe_stream.checkpoint.index import Selection, open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.export.baseline import export_svd
from globe_stream.export.dense import export_dense
from globe_stream.io.safetensors import read_header


def _raw(path: Path) -> dict[str, bytes]:
    """Every tensor's bytes by name, over all shards."""
    found = {}
    for shard in sorted(path.glob("*.safetensors")):
        data = shard.read_bytes()
        for entry in read_header(shard).tensors:
            found[entry.name] = data[entry.start : entry.stop]
    return found


def _check_against_oracle(run: Path, model: Path, out: Path, recipe: Recipe) -> None:
    selection = Selection(
        recipe.families, include_shared=recipe.include_shared, max_experts=recipe.max_experts
    )
    before = open_index(str(model)).select(selection)
    after = open_index(str(out)).select(selection)
    for family in recipe.families:
        for position, (old, new) in enumerate(
            zip(before.experts[family], after.experts[family], strict=True)
        ):
            expected = run_oracle(run, family, position, read_expert(old))
            torch.testing.assert_close(read_expert(new).double(), expected, rtol=5e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(families=("up",), include_shared=True),
        Recipe(max_experts=7),
    ],
    ids=["both", "shared", "some"],
)
def test_experts_are_replaced_and_all_else_is_kept(
    tmp_path: Path, model: Path, recipe: Recipe
) -> None:
    run = make_run(tmp_path / "run", model, recipe)
    result = export_dense(run, tmp_path / "out")
    _check_against_oracle(run, model, tmp_path / "out", recipe)
    before, after = _raw(model), _raw(tmp_path / "out")
    assert list(before) == list(after)
    selected = open_index(str(model)).select(
        Selection(
            recipe.families, include_shared=recipe.include_shared, max_experts=recipe.max_experts
        )
    )
    replaced = {e.storage.weight.tensor for f in recipe.families for e in selected.experts[f]}
    assert all((before[name] == after[name]) == (name not in replaced) for name in before)
    assert "saves no size" in result.note
    assert "saves no size" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "config.json").read_bytes() == (model / "config.json").read_bytes()
    assert (tmp_path / "out" / "generation_config.json").exists()


def test_transformers_loads_it(tmp_path: Path, model: Path, run: Path) -> None:
    from transformers import AutoModelForCausalLM

    export_dense(run, tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    index = open_index(str(tmp_path / "out"))
    expert = next(e for e in index.experts["up"] if (e.layer, e.expert) == (1, 3))
    fused = loaded.model.layers[1].mlp.experts.gate_up_proj[3, 24:]
    assert torch.equal(fused, read_expert(expert))
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert not torch.equal(loaded(tokens).logits, original(tokens).logits)


def test_chosen_dtype(tmp_path: Path, model: Path) -> None:
    recipe = Recipe(max_experts=7)
    run = make_run(tmp_path / "run", model, recipe)
    export_dense(run, tmp_path / "out", dtype="fp32")
    before, after = open_index(str(model)), open_index(str(tmp_path / "out"))
    replaced = [e for e in after.experts["up"] if (e.layer, e.expert) < (1, 1)]
    assert {e.dtype for e in replaced} == {"F32"}
    assert {e.dtype for e in after.experts["down"]} == {"BF16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert len(before.experts["up"]) == len(after.experts["up"])


@pytest.mark.slow
def test_single_file_checkpoint(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", shard="1GB")
    run = make_run(tmp_path / "run", model)
    export_dense(run, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in names
    assert "model.safetensors.index.json" not in names
    assert not any(name.startswith(".") for name in names)
    _check_against_oracle(run, model, tmp_path / "out", Recipe())


def test_svd_export_has_the_error_of_the_discarded_spectrum(
    tmp_path: Path, model: Path, run: Path
) -> None:
    result = export_svd(run, tmp_path / "out", dtype="fp32")
    index = open_index(str(model))
    rank = round((24 * 18 + 5 * 18 * 32 / 12) / (24 + 32))
    for family in ("up", "gate"):
        spectra = torch.stack(
            [torch.linalg.svdvals(read_expert(e).double()) for e in index.experts[family]]
        ).square()
        expected = float((spectra[:, rank:].sum() / spectra.sum()).sqrt())
        assert result.relative_errors[family] == pytest.approx(expected, rel=1e-4)
