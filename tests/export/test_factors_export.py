"""`export --format factors` and `load_factors` against the definition."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from sample_runs import Recipe, make_run, run_oracle
from support import slow

from globe_stream.checkpoint.index import Selection, open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.export.factors import export_factors
from globe_stream.export.manifest import ExportManifest
from globe_stream.export.model_card import model_card
from globe_stream.factorization.trained_run import open_trained_run
from globe_stream.inference.factors import load_factors

RECIPES = {
    "global": Recipe(),
    "layers": Recipe(per_layer=True, activation="tanh", lam=1.0),
    "shared": Recipe(families=("up",), include_shared=True, activation="none", lam=0.0),
    "some": Recipe(families=("gate",), max_experts=7),
}


@pytest.mark.parametrize("name", [name if name == "some" else slow(name) for name in RECIPES])
def test_reconstruct_equals_the_definition(tmp_path: Path, model: Path, name: str) -> None:
    recipe = RECIPES[name]
    run = make_run(tmp_path / "run", model, recipe)
    result = export_factors(run, tmp_path / "out", dtype="fp32", shard_bytes=9_000)
    factors = load_factors(tmp_path / "out")
    index = open_index(str(model)).select(
        Selection(
            recipe.families, max_experts=recipe.max_experts, include_shared=recipe.include_shared
        )
    )
    for family in recipe.families:
        squared, whole = 0.0, 0.0
        for expert in index.experts[family]:
            weights = read_expert(expert)
            group, position = factors.find(
                family, expert.layer, expert.expert, shared=expert.shared
            )
            found = factors.reconstruct(family, expert.layer, expert.expert, shared=expert.shared)
            expected = run_oracle(run, group.key, position, weights)
            torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=2e-5)
            squared += float((found - weights).double().square().sum())
            whole += float(weights.double().square().sum())
        assert result.relative_errors[family] == pytest.approx((squared / whole) ** 0.5, rel=1e-3)


def test_files_follow_the_contract(tmp_path: Path, run: Path) -> None:
    out = tmp_path / "out"
    export_factors(run, out, shard_bytes=9_000, command="globe-stream export X")
    config = json.loads((out / "globe_config.json").read_text())
    weight_map = json.loads((out / "adapters.safetensors.index.json").read_text())["weight_map"]
    assert set(weight_map) == {
        f"layers.{layer}.experts.{e}.{family}.adapter"
        for layer in range(2)
        for e in range(6)
        for family in ("up", "gate")
    }
    assert len(set(weight_map.values())) > 2
    for name, shard in weight_map.items():
        with safe_open(out / shard, "pt") as file:
            assert file.get_tensor(name).shape == (24, 18)
            assert file.get_tensor(name).dtype == torch.bfloat16
    with safe_open(out / "bank.safetensors", "pt") as file:
        assert file.get_tensor("up.bank").shape == (5, 18, 32)
    with safe_open(out / "codes.safetensors", "pt") as file:
        assert int(file.get_tensor("gate.offsets")[-1]) == len(file.get_tensor("gate.values"))
    assert config["units"]["up"]["scale"] == 1.0
    assert config["units"]["up"]["offset"] == 0.01
    card = (out / "README.md").read_text()
    assert "globe-stream export X" in card
    assert "up: activation_lambda | 0.5 |" in card


def test_stored_values_give_the_reconstruction_by_the_printed_formula(
    tmp_path: Path, run: Path
) -> None:
    """Only safetensors and the config, as a stranger would do it."""
    out = tmp_path / "out"
    export_factors(run, out, dtype="fp32")
    group = json.loads((out / "globe_config.json").read_text())["units"]["gate"]
    index = json.loads((out / "adapters.safetensors.index.json").read_text())["weight_map"]
    name = "layers.1.experts.2.gate.adapter"
    with safe_open(out / index[name], "pt") as file:
        adapter = file.get_tensor(name)
    with safe_open(out / "bank.safetensors", "pt") as file:
        bank = file.get_tensor("gate.bank")
    with safe_open(out / "codes.safetensors", "pt") as file:
        rows = file.get_tensor("gate.experts").tolist()
        position = rows.index([1, 2, 0])
        start, stop = file.get_tensor("gate.offsets")[position : position + 2].tolist()
        atoms = file.get_tensor("gate.indices")[start:stop].long()
        alpha = file.get_tensor("gate.values")[start:stop]
    mixed = group["gain"] * torch.einsum("j,jrd->rd", alpha, bank[atoms])
    hidden = (1 - group["lambda"]) * mixed + group["lambda"] * torch.nn.functional.silu(mixed)
    expected = group["scale"] * adapter @ hidden + group["offset"]
    found = load_factors(out).reconstruct("gate", 1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_card_pools_the_errors_of_banks_by_norm(model, tmp_path):
    run = make_run(tmp_path / "run", model, Recipe(per_layer=True, measured=False))
    with open_trained_run(run) as source:
        figures = [(0.1, 9.0), (0.7, 1.0)]
        groups = [fitted for fitted in source.groups if fitted.group.family == "up"]
        changed = tuple(
            replace(fitted, state=replace(
                fitted.state, relative_frobenius_error=error, squared_norm=norm,
            ))
            for fitted, (error, norm) in zip(groups, figures, strict=True)
        )  # fmt: skip
        manifest = ExportManifest({}, "dense", "BF16", "", {"up": 0.25})
        card = model_card(replace(source, groups=changed), manifest, 1)
    expected = ((0.1**2 * 9 + 0.7**2 * 1) / 10) ** 0.5
    assert f"| up | 0.2500 | {expected:.4f} | 3 |" in card


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_error_reported_is_that_of_the_factors_as_written(tmp_path, run, model, dtype):
    result = export_factors(run, tmp_path / dtype, dtype=dtype)
    factors, index = load_factors(tmp_path / dtype), open_index(str(model))
    for family, reported in result.relative_errors.items():
        squares = norms = 0.0
        for expert in index.experts[family]:
            weights = read_expert(expert)
            rebuilt = factors.reconstruct(family, expert.layer, expert.expert)
            squares += float((rebuilt - weights).double().square().sum())
            norms += float(weights.double().square().sum())
        assert reported == pytest.approx((squares / norms) ** 0.5, rel=1e-6)


def test_narrow_factors_are_closer_than_factors_rounded_to_the_nearest(tmp_path, run):
    export_factors(run, tmp_path / "fp32", dtype="fp32")
    export_factors(run, tmp_path / "bf16", dtype="bf16")
    exact, narrow = (load_factors(tmp_path / name) for name in ("fp32", "bf16"))
    group = exact.groups[0]
    ours = nearest = 0.0
    for position, (layer, expert, _) in enumerate(group.members.tolist()):
        rebuilt = exact.reconstruct(group.family, layer, expert)
        other = narrow.reconstruct(group.family, layer, expert)
        bank = exact.bank(group).bfloat16().float()
        mixture = torch.einsum("j,jrd->rd", group.codes([position])[0], bank)
        adapter = exact.adapter(group, position).bfloat16().float()
        plain = group.sizes.scale * adapter @ group.sizes.phi.apply(mixture) + group.sizes.offset
        ours += float((other - rebuilt).square().sum())
        nearest += float((plain - rebuilt).square().sum())
    assert ours < 0.8 * nearest
