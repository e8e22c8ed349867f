"""`export --format model` against the dense export of the same run, loaded by transformers."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sample_runs import Recipe, make_run, tiny_of_type

from globe_stream.errors import InputError
from globe_stream.export.dense import export_dense
from globe_stream.export.model import export_model
from globe_stream.kernels.trellis import SHAPES, decode
from globe_stream.memory.planner import ExportPlan

TOKENS = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(5))
RECIPES = {
    "global": Recipe(),
    "layers": Recipe(per_layer=True, activation="tanh", lam=1.0),
    "shared": Recipe(families=("up",), include_shared=True),
    "some": Recipe(families=("gate",), max_experts=7),
}


def load(path: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    options = {"dtype": torch.float32, "trust_remote_code": True, **options}
    return AutoModelForCausalLM.from_pretrained(path, **options).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.float()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_logits_equal_those_of_the_dense_export(tmp_path: Path, model: Path, name: str) -> None:
    run = make_run(tmp_path / "run", model, RECIPES[name])
    made = export_model(run, tmp_path / "model", dtype="fp32", shard_bytes=1)
    dense = export_dense(run, tmp_path / "dense", dtype="fp32")
    expected = logits(load(tmp_path / "dense"))
    torch.testing.assert_close(logits(load(tmp_path / "model")), expected, rtol=1e-4, atol=2e-4)
    assert (expected - logits(load(model))).abs().max() > 0.01
    assert made.relative_errors == pytest.approx(dense.relative_errors, rel=1e-4)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "olmoe"])
def test_other_types_with_their_own_names_gates_and_biases(tmp_path: Path, kind: str) -> None:
    other = tiny_of_type(tmp_path / "source", kind)
    run = make_run(tmp_path / "run", other)
    export_model(run, tmp_path / "model", dtype="fp32")
    export_dense(run, tmp_path / "dense", dtype="fp32")
    expected = logits(load(tmp_path / "dense"))
    loaded = load(tmp_path / "model")
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=2e-4)
    loaded.save_pretrained(tmp_path / "saved")
    again = logits(load(tmp_path / "saved"))
    torch.testing.assert_close(again, logits(loaded), rtol=1e-6, atol=1e-6)


def test_what_was_not_compressed_is_there_byte_for_byte(
    tmp_path: Path, model: Path, run: Path
) -> None:
    export_model(run, tmp_path / "out")
    before, after = tensors(model), tensors(tmp_path / "out")
    kept = [name for name in before if ".experts." not in name]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert not any(".experts." in name for name in after)
    for layer in range(2):
        down = torch.stack(
            [before[f"model.layers.{layer}.mlp.experts.{e}.down_proj.weight"] for e in range(6)]
        )
        assert torch.equal(after[f"globe_layers.{layer}.down_proj"], down)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(after)


def test_companions_and_card(tmp_path: Path, model: Path, run: Path) -> None:
    export_model(run, tmp_path / "out", command="globe-stream export X")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "globe_stream_qwen2_moe"
    assert config["auto_map"]["AutoModelForCausalLM"].startswith("modeling_globe_stream.")
    generation = "generation_config.json"
    assert (tmp_path / "out" / generation).read_bytes() == (model / generation).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert "saves no size" not in card
    assert "globe-stream export X" in card


def test_same_call_again_is_complete_and_another_dtype_is_refused(
    tmp_path: Path, run: Path
) -> None:
    first = export_model(run, tmp_path / "out")
    again = export_model(run, tmp_path / "out")
    assert again.note == "It was complete already."
    assert again.bytes == first.bytes
    with pytest.raises(InputError, match="another export that differs"):
        export_model(run, tmp_path / "out", dtype="fp32")


def test_the_budget_changes_no_byte(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(run, tmp_path / "roomy")
    with pytest.raises(InputError, match="needs at least"):
        export_model(run, tmp_path / "none", memory=1)
    smallest = ExportPlan(0, 1, 0)
    monkeypatch.setattr("globe_stream.export.order.plan_export", lambda *_, **__: smallest)
    export_model(run, tmp_path / "tight")
    roomy, tight = tensors(tmp_path / "roomy"), tensors(tmp_path / "tight")
    assert all(torch.equal(roomy[name], tight[name]) for name in roomy)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [(8, 8), (6, 3)])
@pytest.mark.parametrize("name", ["global", "layers"])
def test_quantised_logits_and_errors_are_those_of_what_was_written(
    tmp_path: Path, model: Path, name: str, bits: tuple[int, int]
) -> None:
    """Against W_hat made with numpy from the tensors in the folder, put into the original."""
    recipe = RECIPES[name]
    run = make_run(tmp_path / "run", model, recipe)
    made = export_model(run, tmp_path / "model", dtype="fp32", bits=bits)
    stored, config = tensors(tmp_path / "model"), read_config(tmp_path / "model")
    dense, originals = load(model), tensors(model)
    squared = dict.fromkeys(recipe.families, 0.0)
    norms = dict.fromkeys(recipe.families, 0.0)
    for layer, parts in config["layers"].items():
        fused = dense.model.layers[int(layer)].mlp.experts.gate_up_proj
        for family, part in parts.items():
            for row, expert in enumerate(part["experts"]):
                whole = numpy_matrix(
                    stored, config["units"][part["unit"]], layer, part, family, row
                )
                source = f"model.layers.{layer}.mlp.experts.{expert}.{family}_proj.weight"
                squared[family] += float(((originals[source].double().numpy() - whole) ** 2).sum())
                norms[family] += float(originals[source].double().square().sum())
                half = slice(0, 24) if family == "gate" else slice(24, 48)
                with torch.no_grad():
                    fused[expert, half] = torch.from_numpy(whole)
    for family in recipe.families:
        expected = (squared[family] / norms[family]) ** 0.5
        assert made.relative_errors[family] == pytest.approx(expected, rel=1e-4)
    found = logits(load(tmp_path / "model"))
    torch.testing.assert_close(found, logits(dense), rtol=1e-3, atol=1e-3)


def read_config(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())["globe_stream"]


def numpy_values(packed: Any, scales: Any, shape: tuple[int, ...], bits: int) -> Any:
    """Values of bit planes (bits, bytes) and scales by rows of `shape`, one group a row."""
    planes = np.unpackbits(packed.numpy(), axis=-1, bitorder="little")[..., : math.prod(shape)]
    numbers = (planes * (1 << np.arange(bits))[:, None]).sum(0).reshape(shape)
    if bits in SHAPES:
        levels = decode(torch.from_numpy(numbers.astype("uint8")), bits).double().numpy()
    else:
        levels = np.linspace(-1, 1, 2**bits)[numbers]
    return levels * scales.double().numpy()


def numpy_matrix(
    stored: dict[str, torch.Tensor], unit: Any, layer: str, part: Any, family: str, row: int
) -> Any:
    """W_hat (p, d) by the definition: adapters times L^-1 H."""
    bank_bits, adapter_bits = unit["bits"]
    name = re.sub(r"\W", "_", part["unit"])
    packed, scales = (stored[f"globe_banks.{name}.{kind}"] for kind in ("packed", "scales"))
    r, d = unit["rank"], unit["d"]
    atoms = np.stack(
        [
            np.stack([numpy_values(p, s, (d,), bank_bits) for p, s in zip(ps, ss, strict=True)])
            for ps, ss in zip(packed, scales, strict=True)
        ]
    )
    own = f"globe_layers.{layer}.{family}"
    code = stored[f"{own}_codes"][row].double().numpy()
    mixed = unit["gain"] * np.einsum("j,jrd->rd", code, atoms)
    curved = np.tanh(mixed) if unit["activation"] == "tanh" else mixed / (1 + np.exp(-mixed))
    hidden = (1 - unit["lambda"]) * mixed + unit["lambda"] * curved
    gram = hidden @ hidden.T
    triangular = np.linalg.cholesky(gram + 1e-6 * np.trace(gram) / r * np.eye(r))
    adapters = numpy_values(
        stored[f"{own}_packed"][row], stored[f"{own}_scales"][row], (unit["p"], r), adapter_bits
    )
    return unit["scale"] * adapters @ np.linalg.solve(triangular, hidden) + unit["offset"]
