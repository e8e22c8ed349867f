"""One bad expert does not make a model unusable: it is named, and can be left as it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from safetensors.torch import load_file

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.selection import Selection, parse_exclude
from globe_stream.cli.main import run as run_command_line
from globe_stream.errors import InputError
from globe_stream.inference.patch import patch_model

VALUES = {"zero": b"\0\0", "large": b"\x60\x7f", "nan": b"\xc0\x7f"}  # bfloat16: 0, 3e38, NaN


@pytest.fixture
def own(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of this test's own."""
    return shutil.copytree(checkpoint, tmp_path / "own")


def spoil(expert: ExpertMatrix, kind: str) -> None:
    weight = expert.storage.weight
    assert weight.dtype == "BF16"
    content = bytearray(weight.path.read_bytes())
    count = weight.nbytes // 2 if kind == "zero" else 1
    content[weight.offset : weight.offset + 2 * count] = VALUES[kind] * count
    weight.path.write_bytes(content)


def tensors(folder: Path) -> dict[str, Any]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["large", "nan"])
def test_a_bad_expert_of_gate_is_named_before_up_is_seeded(
    own: Path, tmp_path: Path, tell: Callable[..., Any], kind: str
) -> None:
    run, bad = tmp_path / "run", open_index(str(own)).experts["gate"][20]
    spoil(bad, kind)
    told = tell("seed", own, "--run", run)
    assert told.code == 2
    last = told.err.strip().splitlines()[-1]
    assert f"{bad.storage.weight.path}: tensor {bad.storage.weight.tensor}: {bad.name} " in last
    assert f"--exclude {bad.layer}:{bad.expert}" in last
    assert not run.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_zero_experts_are_left_out_as_if_excluded(
    own: Path, tmp_path: Path, tell: Callable[..., Any]
) -> None:
    index = open_index(str(own))
    for family, position in (("gate", 20), ("up", 3)):
        spoil(index.experts[family][position], "zero")
    asked = tell("seed", own, "--run", tmp_path / "asked", "--exclude", "0:3,1:8")
    assert asked.code == 0
    assert "zero everywhere" not in asked.err
    for _ in range(2):  # the second continues
        told = tell("seed", own, "--run", tmp_path / "run", "--json")
        assert told.code == 0
        assert (
            "2 experts with a matrix that is zero everywhere, kept as stored, "
            "as with --exclude 0:3,1:8"
        ) in told.err
    assert json.loads(told.out)["zero_experts"] == [[0, 3], [1, 8]]
    assert support.results(tmp_path / "run") == support.results(tmp_path / "asked")


@pytest.mark.slow
def test_a_run_with_zero_experts_that_was_killed_continues(own: Path, tmp_path: Path) -> None:
    spoil(open_index(str(own)).experts["up"][3], "zero")

    def arguments(name: str) -> list[str]:
        return ["seed", str(own), "--run", str(tmp_path / name), "--checkpoint-every", "0"]

    log = tmp_path / "log"
    events = support.events_of(arguments("whole"), log)
    for event in range(3, events, events // 3):
        name = f"killed-{event}"
        code = support.outcome(support.command, arguments(name), log, event, support.KILL)
        assert code == -support.KILL
        assert support.outcome(support.command, arguments(name), log) == 0
        assert support.results(tmp_path / name) == support.results(tmp_path / "whole")


def test_nothing_but_zero_experts(own: Path, tmp_path: Path, tell: Callable[..., Any]) -> None:
    for expert in open_index(str(own)).experts["gate"]:
        spoil(expert, "zero")
    told = tell("seed", own, "--run", tmp_path / "run")
    assert told.code == 2
    assert "--exclude leaves no expert of up: 24 have a matrix that is zero everywhere" in told.err
    assert not (tmp_path / "run").exists()


def test_a_shared_expert_that_is_zero_is_refused(
    model: Path, tmp_path: Path, tell: Callable[..., Any]
) -> None:
    own = shutil.copytree(model, tmp_path / "own")
    shared = open_index(str(own)).select(Selection(include_shared=True)).experts["up"][-1]
    assert shared.shared
    spoil(shared, "zero")
    told = tell("seed", own, "--run", tmp_path / "run", "--include-shared", "--rank", 4)
    assert told.code == 2
    assert f"{shared.name} is zero everywhere. Leave it as it is with --include-shared" in told.err


@pytest.mark.slow
def test_methods_are_compared_without_zero_experts(own: Path, tell: Callable[..., Any]) -> None:
    spoil(open_index(str(own)).experts["up"][3], "zero")
    told = tell("sweep", own, "--methods", "rpca", "--families", "up", "--json")
    assert told.code == 0
    assert "kept as stored, as with --exclude 0:3" in told.err
    asked = tell(
        "sweep", own, "--methods", "rpca", "--families", "up", "--exclude", "0:3", "--json"
    )
    errors = [
        [row["relative_frobenius_error"] for row in json.loads(one.out)["rows"]]
        for one in (told, asked)
    ]
    assert errors[0] == errors[1]


@pytest.fixture(scope="module", params=["zero", "large"])
def exports(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A model with an expert that is left out, trained, in all three forms, with its kind."""
    folder, kind = tmp_path_factory.mktemp("exports"), request.param
    own = shutil.copytree(model, folder / "own")
    bad = open_index(str(own)).experts["gate"][8]
    spoil(bad, kind)
    run = str(folder / "run")
    chosen = [] if kind == "zero" else ["--exclude", f"{bad.layer}:{bad.expert}"]
    commands = [["seed", str(own), "--run", run, "--rank", "18", *chosen]]
    commands += [["train", run, "--epochs", "1", "--warmup-epochs", "0"]]
    for form in ("dense", "factors", "model"):
        out = ["--out", str(folder / form), "--format", form, "--dtype", "fp32"]
        commands.append(["export", run, *out])
    assert [run_command_line(command) for command in commands] == [0] * 5
    return kind, folder


@pytest.mark.slow
def test_excluded_experts_are_in_a_dense_export_as_they_were(exports: tuple[str, Path]) -> None:
    _, folder = exports
    before, after = tensors(folder / "own"), tensors(folder / "dense")
    stacked = {name for name in before if ".experts." in name and "down" not in name}
    index = open_index(str(folder / "own"))
    left_out = {e.storage.weight.tensor for f in ("up", "gate") for e in index.experts[f][8:9]}
    assert left_out <= stacked
    for name in stacked:
        assert (name in left_out) == bool(before[name].float().equal(after[name].float())), name


@pytest.mark.slow
def test_exports_of_factors_and_as_a_model_agree_with_the_dense_one(
    exports: tuple[str, Path],
) -> None:
    from transformers import AutoModelForCausalLM

    kind, folder = exports
    tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(5))
    options = {"dtype": torch.float32, "trust_remote_code": True}
    dense, small, patched = (
        AutoModelForCausalLM.from_pretrained(folder / name, **options).eval()
        for name in ("dense", "model", "own")
    )
    patch_model(patched, folder / "factors")
    with torch.no_grad():
        expected, *found = (one(input_ids=tokens).logits for one in (dense, small, patched))
    if kind == "zero":
        assert expected.isfinite().all()
    for logits in found:
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-4, equal_nan=True)


def test_what_is_understood() -> None:
    assert parse_exclude("3:17") == ((3, 17),)
    assert parse_exclude("3:17, 0:2 ,4:*,*:7") == ((3, 17), (0, 2), (4, None), (None, 7))
    for text in ("", "3", "3:", ":3", "*:*", "3:4:5", "a:b", "3:4,", "-1:2", "3:²"):
        with pytest.raises(InputError, match="is not understood: write layer:expert"):
            parse_exclude(text)


def test_an_expert_that_is_not_there(checkpoint: Path, tmp_path: Path, tell: Any) -> None:
    told = tell("seed", checkpoint, "--run", tmp_path / "run", "--exclude", "99:0")
    assert told.code == 2
    assert "--exclude 99:0: there is no such expert" in told.err
    assert not (tmp_path / "run").exists()
