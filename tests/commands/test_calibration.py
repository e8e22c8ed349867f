"""`export --calibrate`: the checkpoint run on text, in memory or from disk, and what is refused."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sample_runs import Recipe, larger_model, make_run
from support import tree

from globe_stream.cli.main import run as run_cli
from globe_stream.commands.calibration import TextInputs, text_inputs
from globe_stream.commands.recipe import parse_recipe
from globe_stream.commands.run_recipe import run_recipe
from globe_stream.errors import InputError
from globe_stream.export.factors import export_factors
from globe_stream.factorization.input_metric import DAMPING
from globe_stream.inference.factors import load_factors

PLENTY = 4 << 30


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    """Two texts of 5 and 2 windows."""
    generator = torch.Generator().manual_seed(0)
    for name, count in (("one", 5 * 256), ("two", 2 * 256 + 100)):
        letters = torch.randint(32, 127, (count,), generator=generator, dtype=torch.uint8)
        (tmp_path / name).write_bytes(letters.numpy().tobytes())
    return [tmp_path / "one", tmp_path / "two"]


def _inputs(run: Path, texts: list[Path], memory: int = PLENTY) -> TextInputs:
    return text_inputs(run, texts, model=None, memory=memory, silent=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["factors", "model"])
def test_by_command(
    tmp_path: Path,
    run: Path,
    texts: list[Path],
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    command = ["export", str(run), "--format", kind, "--out", str(tmp_path / "out"), "--json"]
    command += [word for text in texts for word in ("--calibrate", str(text))]
    assert run_cli(command) == 0
    document = json.loads(capsys.readouterr().out)
    told = document["calibration"]
    digests = [hashlib.sha256(text.read_bytes()).hexdigest() for text in texts]
    assert [text["sha256"] for text in told["texts"]] == digests
    assert [text["bytes"] for text in told["texts"]] == [1280, 612]
    assert (told["tokens"], told["damping"]) == (7 * 256, DAMPING)
    assert sorted(told["input_weighted_error"]) == ["gate", "up"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1,792 tokens of text" in card
    assert all(digest in card for digest in digests)
    if kind == "factors":
        config = json.loads((tmp_path / "out" / "globe_config.json").read_text())
        assert config["calibration"] == told
    before = tree(tmp_path / "out")
    assert run_cli(command) == 0
    assert "complete already" in json.loads(capsys.readouterr().out)["note"]
    assert tree(tmp_path / "out") == before


@pytest.mark.slow
def test_weights_on_disk_give_the_same_bytes(tmp_path: Path, run: Path, texts: list[Path]) -> None:
    inputs = _inputs(run, texts)
    spare = inputs.needs.weights // 4
    assert inputs.needs.total < PLENTY
    little = replace(inputs, memory=inputs.needs.overhead + spare)
    export_factors(run, tmp_path / "held", inputs=inputs)
    export_factors(run, tmp_path / "disk", inputs=little)
    assert tree(tmp_path / "held") == tree(tmp_path / "disk")


def test_what_layers_are_given_decides(tmp_path: Path, run: Path, texts: list[Path]) -> None:
    for name, chosen in (("one", texts[:1]), ("both", texts)):
        export_factors(run, tmp_path / f"out-{name}", dtype="fp32", inputs=_inputs(run, chosen))
    found = [load_factors(tmp_path / f"out-{name}") for name in ("one", "both")]
    adapters = [one.adapter(*one.find("up", 0, 0)) for one in found]
    assert not torch.equal(*adapters)
    with pytest.raises(InputError, match="holds another export that differs"):
        export_factors(run, tmp_path / "out-one", dtype="fp32", inputs=_inputs(run, texts))


def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path,
    model: Path,
    run: Path,
    texts: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    down = make_run(tmp_path / "down", model, Recipe(families=("down",)))
    (tmp_path / "short").write_bytes(b"short")
    out = tmp_path / "out"
    cases = [
        (run, "factors", tmp_path / "none", "no such file or folder while reading the text"),
        (run, "factors", tmp_path, "while reading the text"),
        (run, "model", tmp_path / "short", "5 bytes are too few for one window of 256 tokens"),
        (run, "dense", texts[0], "--calibrate: a dense export has no adapters to fit"),
        (down, "factors", texts[0], "holds down projections"),
    ]
    for path, kind, text, said in cases:
        command = ["export", str(path), "--format", kind, "--out", str(out)]
        assert run_cli([*command, "--calibrate", str(text)]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert said in lines[-1], lines
        assert not out.exists()


def test_too_little_memory_is_refused_before_loading(run: Path, texts: list[Path]) -> None:
    with pytest.raises(InputError, match=r"memory 100\.00 MiB: calibration needs more than"):
        _inputs(run, texts, 100 << 20)


def test_recipes_name_the_texts() -> None:
    table = {"format": "model", "out": "o", "calibrate": ["a.txt", "b.txt"]}
    recipe = parse_recipe({"model": "m", "run": "r", "export": [table]}, "r.toml")
    assert recipe.export[0].calibrate == (Path("a.txt"), Path("b.txt"))
    with pytest.raises(InputError, match="calibrate = 'a': a list of paths is needed"):
        parse_recipe({"model": "m", "run": "r", "export": [{**table, "calibrate": "a"}]}, "r.toml")


def test_a_recipe_whose_text_is_missing_does_nothing(tmp_path: Path) -> None:
    table = {"format": "model", "out": str(tmp_path / "o"), "calibrate": [str(tmp_path / "none")]}
    values = {"model": "none", "run": str(tmp_path / "r"), "export": [table]}
    with pytest.raises(InputError, match="while reading the text"):
        run_recipe(parse_recipe(values, "r.toml"), command="", silent=True)
    assert not list(tmp_path.iterdir())


EXPORT = """
import json, sys
from pathlib import Path
import psutil, torch
from globe_stream.memory.allocator import return_freed_memory
return_freed_memory()
torch.set_num_threads(1)
from globe_stream.commands.export import export
from globe_stream.commands.models import Loading, build_empty
from globe_stream.config import ExportConfig, RuntimeConfig
from globe_stream.memory.base import measured_base
run, model, out, text, *spare = sys.argv[1:]
build_empty(Path(model), Loading())
for number, over in enumerate(spare):
    budget = measured_base() + int(over)
    place = Path(f"{out}-{number}")
    wanted = ExportConfig(format="model", out=place, calibrate=(Path(text),), bits="8,8")
    runtime = RuntimeConfig(memory=str(budget))
    made = export(Path(run), wanted, runtime=runtime, silent=True)
    print(json.dumps({"budget": budget, "peak": made.peak_bytes, "price": made.price_bytes}))
"""


@pytest.mark.slow
def test_peak_stays_within_the_budget(tmp_path: Path) -> None:
    """A model of 59 MiB in bfloat16, 118 in float32: first from disk, then held."""
    model = tmp_path / "model"
    larger_model(model, experts=12, hidden=768, intermediate=256)
    recipe = Recipe(bases=8, rank=64, support=4, lam=1.0, measured=False)
    run = make_run(tmp_path / "run", model, recipe)
    (tmp_path / "text").write_bytes(bytes(range(32, 127)) * 65)
    places = [run, model, tmp_path / "out", tmp_path / "text", 288 << 20, 600 << 20]
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, *map(str, places)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    disk, held = map(json.loads, done.stdout.splitlines())
    assert disk["budget"] < held["peak"], "what is held would not fit the first budget"
    for found in (disk, held):
        assert found["peak"] <= found["budget"]
        assert found["peak"] <= 1.1 * found["price"]
