"""`eval --frontier`: rows against what their names say, bits counted from files, a picture."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sample_runs import Recipe, make_run

from globe_stream.cli.main import run as run_cli
from globe_stream.commands.scoring import Scoring, compare_models
from globe_stream.commands.variants import parse_variants
from globe_stream.config import Windows
from globe_stream.errors import InputError
from globe_stream.export.model import export_model

WINDOWS = Windows(count=2, length=32, stride=500)
NAMES = ("original", "rtn-4", "model", "model-8-4", "svd", "svd-rtn-8", "dense-rtn-4")


@pytest.fixture(scope="module")
def scored(run: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder of the exports, and the rows by name of the variant."""
    work = tmp_path_factory.mktemp("frontier") / "work"
    scoring = Scoring(text, NAMES, WINDOWS, work=work, frontier=True)
    return work, {row.model: row for row in compare_models([run], scoring).rows}


@pytest.mark.slow
def test_bits_a_weight_are_those_of_the_files(scored: tuple[Path, dict]) -> None:
    work, rows = scored
    weights = 2 * 2 * 6 * 24 * 32
    for name in ("model", "model-8-4"):
        stored = sum(
            values.nbytes
            for tensor, values in _tensors(work / f"0-run-{name}").items()
            if tensor.startswith("globe_") and not tensor.endswith(("down_proj", "_dense"))
        )
        assert rows[name].bits_per_weight == pytest.approx(8 * stored / weights)
    assert rows["original"].bits_per_weight == 16
    assert rows["rtn-4"].bits_per_weight == 4 + 32 / 32  # rows of 32 are one group each
    rank = (24 * 18 + 5 * 18 * 32 // 12) // (24 + 32)
    assert rows["svd"].bits_per_weight == pytest.approx(16 * rank * (24 + 32) / (24 * 32))
    svd = rank * (8 * (24 + 32) + 2 * 32) / (24 * 32)
    assert rows["svd-rtn-8"].bits_per_weight == pytest.approx(svd)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.slow
def test_rounded_experts_are_where_the_original_ones_were(
    scored: tuple[Path, dict], model: Path
) -> None:
    before, after = _tensors(model), _tensors(scored[0] / "0-run-rtn-4")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".experts." in name and "down" not in name for name in changed)
    for name in changed:
        weights, rounded = before[name].double(), after[name].double()
        step = (weights.amax(-1) - weights.amin(-1)) / 15
        assert ((weights - rounded).abs().amax(-1) <= 0.5 * step * 1.05 + 4e-3).all()
        assert all(len(torch.unique(row)) <= 16 for row in rounded.flatten(0, -2))


@pytest.mark.slow
def test_what_no_run_decides_is_scored_once(
    run: Path, text: Path, model: Path, tmp_path: Path
) -> None:
    larger = make_run(tmp_path / "larger", model, Recipe(bases=6, rank=22))
    scoring = Scoring(text, ("original", "rtn-8", "svd"), WINDOWS, frontier=True)
    rows = compare_models([run, larger], scoring).rows
    assert [(row.run, row.model) for row in rows] == [
        ("", "original"),
        ("", "rtn-8"),
        ("run", "svd"),
        ("larger", "svd"),
    ]


@pytest.mark.slow
def test_folders_of_models_are_scored_beside_runs(run: Path, text: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "quantised", bits=(8, 4))
    scoring = Scoring(text, ("model-8-4",), WINDOWS)
    first, second = compare_models([run, tmp_path / "quantised"], scoring).rows
    assert (second.run, second.model) == ("quantised", "model")
    assert second.score.bits_per_byte == first.score.bits_per_byte
    assert second.bits_per_weight == first.bits_per_weight
    assert second.relative_errors == first.relative_errors
    (alone,) = compare_models([tmp_path / "quantised"], scoring).rows
    assert alone.score.bits_per_byte == first.score.bits_per_byte


@pytest.mark.slow
@pytest.mark.parametrize("name", ["p.png", "p.svg"])
def test_the_command_draws_a_picture(
    run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    options = ["--models", "original,rtn-4", "--window-count", "1", "--window-length", "16"]
    picture = ["--picture", str(tmp_path / name)]
    command = ["eval", str(run), "--text", str(text), "--frontier", *options, *picture]
    assert run_cli([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in document["comparison"]["rows"]] == ["original", "rtn-4"]
    start = b"\x89PNG" if name.endswith("png") else b"<?xml"
    assert (tmp_path / name).read_bytes().startswith(start)


def test_runs_of_other_experts_are_refused(
    run: Path, text: Path, model: Path, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", model, Recipe(families=("up",)))
    with pytest.raises(InputError, match="replaces other experts"):
        compare_models([run, other], Scoring(text, NAMES, WINDOWS, frontier=True))


@pytest.mark.parametrize("name", ["rtn", "rtn-9", "model-8", "svd-rtn-4-4", "original-8"])
def test_names_that_are_no_variant(name: str) -> None:
    with pytest.raises(InputError, match="use some of original"):
        parse_variants((name,))


def test_bad_pictures_are_refused(
    run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for picture, said in (("x.jpg", "a .png or .svg"), ("no/x.png", "does not exist")):
        command = ["eval", str(run), "--text", str(text), "--picture", str(tmp_path / picture)]
        assert run_cli(command) == 2
        assert said in capsys.readouterr().err


def test_what_is_neither_run_nor_model_is_refused(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{")
    assert run_cli(["eval", str(tmp_path), "--text", str(text)]) == 2
    assert "not a run directory" in capsys.readouterr().err
