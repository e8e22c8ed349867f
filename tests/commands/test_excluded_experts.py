"""One bad expert does not make a model unusable: it is named, and can be left as it is."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.selection import parse_exclude
from globe_stream.errors import InputError
from globe_stream.store.run import Run

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
@pytest.mark.parametrize("kind", VALUES)
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
    if run.exists():
        assert not Run(run, writable=False).has("up/bank")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["zero", "large"])
def test_excluded_experts_are_exported_as_they_are(
    own: Path, tmp_path: Path, tell: Callable[..., Any], kind: str
) -> None:
    run, out, bad = tmp_path / "run", tmp_path / "out", open_index(str(own)).experts["gate"][20]
    spoil(bad, kind)
    chosen = f"{bad.layer}:{bad.expert}"
    assert tell("seed", own, "--run", run, "--exclude", chosen).code == 0
    assert tell("train", run, "--epochs", 1, "--warmup-epochs", 1).code == 0
    assert tell("export", run, "--out", out, "--format", "dense").code == 0
    before, after = tensors(own), tensors(out)
    same = {name for name in before if before[name].equal(after[name])}
    experts = {name for name in before if ".experts." in name and "down" not in name}
    assert same & experts == {
        expert.storage.weight.tensor
        for family in ("up", "gate")
        for expert in open_index(str(own)).experts[family]
        if (expert.layer, expert.expert) == (bad.layer, bad.expert)
    }


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
