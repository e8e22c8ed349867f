"""Down projections and experts without a gate: through seeding, training and the exports."""

import json
from pathlib import Path

import pytest
import torch
from sample_runs import Recipe, make_run, run_oracle
from tiny_files import random_tensor, write_checkpoint
from torch import Tensor

from globe_stream.checkpoint.experts import upright
from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.cli.main import run as command_line
from globe_stream.errors import InputError
from globe_stream.export.dense import export_dense
from globe_stream.export.factors import export_factors
from globe_stream.export.model import export_model
from globe_stream.inference.factors import load_factors

RECIPE = Recipe(families=("up", "gate", "down"), include_shared=True)


@pytest.mark.slow
def test_down_is_a_family_of_its_own(tmp_path: Path, model: Path) -> None:
    """Factors of the transposed matrices (p, d); a dense export puts them where they came from."""
    run = make_run(tmp_path / "run", model, RECIPE)
    export_factors(run, tmp_path / "factors", dtype="fp32")
    export_dense(run, tmp_path / "dense", dtype="fp32")
    factors = load_factors(tmp_path / "factors")
    before, after = open_index(str(model)), open_index(str(tmp_path / "dense"))
    for old, new in zip(before.experts["down"], after.experts["down"], strict=True):
        stored = read_expert(new)
        assert stored.shape == old.shape == new.shape
        group, position = factors.find("down", old.layer, old.expert)
        expected = run_oracle(run, group.key, position, read_expert(upright(old)))
        found = factors.reconstruct("down", old.layer, old.expert)
        assert found.shape == read_expert(old).T.shape
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(stored.T, found, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", ["C", "D"])
def test_down_of_stacks(tmp_path: Path, kind: str) -> None:
    """One stack holds gate and up, another down: both are written back in their own order."""
    p, d, experts = 24, 32, 8
    both, down = random_tensor(experts, 2 * p, d), random_tensor(experts, d, p)
    module = "mlp" if kind == "C" else "feed_forward"
    tensors = {f"model.layers.0.{module}.experts.gate_up_proj": both,
               f"model.layers.0.{module}.experts.down_proj": down}  # fmt: skip
    if kind == "D":
        tensors = {name: tensor.transpose(1, 2) for name, tensor in tensors.items()}
    config = {"model_type": "qwen3_moe" if kind == "C" else "llama4_text", "num_hidden_layers": 1,
              "num_local_experts": experts, "intermediate_size": p, "moe_intermediate_size": p,
              "hidden_size": d}  # fmt: skip
    model = write_checkpoint(tmp_path / "model", tensors, config)
    run = make_run(tmp_path / "run", model, Recipe(families=("down",)))
    export_dense(run, tmp_path / "dense")
    export_factors(run, tmp_path / "factors", dtype="fp32")
    factors, after = load_factors(tmp_path / "factors"), open_index(str(tmp_path / "dense"))
    for expert in after.experts["down"]:
        found = factors.reconstruct("down", 0, expert.expert)
        torch.testing.assert_close(read_expert(expert).T, found, rtol=1e-3, atol=2e-5)
    for family, part in (("gate", both[:, :p]), ("up", both[:, p:])):
        for expert in after.experts[family]:
            assert torch.equal(read_expert(expert), part[expert.expert])


def test_a_model_folder_has_no_factors_of_down(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path / "run", model, RECIPE)
    with pytest.raises(InputError, match="factors of down cannot stand in a model"):
        export_model(run, tmp_path / "out")


def _nemotron(root: Path) -> Path:
    tensors: dict[str, Tensor] = {}
    for e in range(6):
        name = f"backbone.layers.0.mixer.experts.{e}"
        tensors[f"{name}.up_proj.weight"] = random_tensor(16, 24, seed=e)
        tensors[f"{name}.down_proj.weight"] = random_tensor(24, 16, seed=50 + e)
    config = {"model_type": "nemotron_h", "n_routed_experts": 6, "num_hidden_layers": 1}
    return write_checkpoint(root, tensors, config)


def test_both_families_of_experts_without_a_gate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`both` means up alone, and a line says so; gate by itself is refused."""
    model, run = _nemotron(tmp_path / "model"), tmp_path / "run"
    options = ["--bases", "3", "--dictionary-rounds", "5", "--json"]
    assert command_line(["seed", str(model), "--run", str(run), *options]) == 0
    captured = capsys.readouterr()
    assert set(json.loads(captured.out)["families"]) == {"up"}
    line = f"{model}: its experts have no gate; --families both means up"
    assert line in captured.err.splitlines()
    assert (
        command_line(["seed", str(model), "--run", str(tmp_path / "b"), "--families", "gate"]) == 2
    )
    assert "has no gate matrices" in capsys.readouterr().err


@pytest.mark.parametrize("families", ["up,up", "sideways", "up,", "both,down"])
def test_families_that_are_none(families: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["plan", "nowhere", "--families", families]) == 2
    assert f"--families '{families}': give up, gate or both" in capsys.readouterr().err
