"""Exports of factors in few bits: read by every way to load, with the errors that they tell."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sample_runs import Recipe, make_run

import globe_stream
from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.cli.main import run as run_cli
from globe_stream.export.factors import export_factors
from globe_stream.export.model import export_model
from globe_stream.export.verify import verify_export

TOKENS = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(5))
RECIPES = {
    "global": Recipe(),
    "tanh": Recipe(per_layer=True, activation="tanh", lam=1.0),
    "shared": Recipe(families=("up",), include_shared=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [(8, 8), (5, 3)])
@pytest.mark.parametrize("name", RECIPES)
def test_errors_told_are_those_of_what_is_read(
    tmp_path: Path, model: Path, name: str, bits: tuple[int, int]
) -> None:
    run = make_run(tmp_path / "run", model, RECIPES[name])
    made = export_factors(run, tmp_path / "out", bits=bits, shard_bytes=3000)
    factors = globe_stream.load_factors(tmp_path / "out")
    index = open_index(str(model))
    for group in factors.groups:
        assert group.sizes.bits == bits
    for family, told in made.relative_errors.items():
        squared = norms = 0.0
        for expert in index.experts[family]:
            if factors.holds(family, expert.layer, expert.expert):
                exact = read_expert(expert).double()
                found = factors.reconstruct(family, expert.layer, expert.expert).double()
                squared += float((found - exact).square().sum())
                norms += float(exact.square().sum())
        if name == "shared":
            assert (squared / norms) ** 0.5 == pytest.approx(told, rel=0.3)  # some are shared
        else:
            assert (squared / norms) ** 0.5 == pytest.approx(told, rel=1e-4)


def test_adapter_and_atoms_are_those_of_the_reconstruction(tmp_path: Path, run: Path) -> None:
    export_factors(run, tmp_path / "out", bits=(6, 4))
    factors = globe_stream.load_factors(tmp_path / "out")
    group, position = factors.find("up", 1, 3)
    expected = factors.reconstruct("up", 1, 3)
    code = group.codes([position])[0]
    mixed = torch.einsum("j,jrd->rd", code, factors.bank(group))
    hidden = group.sizes.phi.apply(mixed)
    torch.testing.assert_close(hidden, factors.hidden(group, position), rtol=1e-4, atol=1e-5)
    found = group.sizes.scale * factors.adapter(group, position) @ hidden + group.sizes.offset
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_patched_model_computes_as_the_folder_of_a_model(
    tmp_path: Path, model: Path, run: Path
) -> None:
    from transformers import AutoModelForCausalLM

    export_factors(run, tmp_path / "factors", bits=(8, 3))
    export_model(run, tmp_path / "model", dtype="fp32", bits=(8, 3))
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    patched = globe_stream.patch_model(plain, tmp_path / "factors")
    loaded = globe_stream.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        found, expected = (one(input_ids=TOKENS).logits for one in (patched, loaded))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    patched.save_pretrained(tmp_path / "saved")
    again = globe_stream.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=TOKENS).logits, found, rtol=1e-5, atol=1e-5)


def test_both_formats_hold_the_same_bits(tmp_path: Path, run: Path) -> None:
    export_factors(run, tmp_path / "factors", bits=(7, 4))
    export_model(run, tmp_path / "model", bits=(7, 4))
    single, stacked = {}, {}
    for path in (tmp_path / "factors").glob("*.safetensors"):
        single |= load_file(path)
    for path in (tmp_path / "model").glob("*.safetensors"):
        stacked |= load_file(path)
    for part in ("packed", "scales"):
        assert torch.equal(single[f"up.bank.{part}"], stacked[f"globe_banks.up.{part}"])
        rows = stacked[f"globe_layers.1.gate_{part}"]
        for expert in range(len(rows)):
            name = f"layers.1.experts.{expert}.gate.adapter.{part}"
            assert torch.equal(single[name], rows[expert])


def test_by_command_and_verified(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["export", str(run), "--format", "factors", "--bits", "8,4", "--out", str(out)]
    assert run_cli(command) == 0
    assert not verify_export(out).problems
    assert run_cli([*command[:3], "dense", *command[4:-1], str(tmp_path / "dense")]) == 2
    assert "a dense export is not quantised" in capsys.readouterr().err
