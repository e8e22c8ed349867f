"""Recipes: every key is checked before anything is done; carrying one out again continues."""

import json

import pytest
import support

from globe_stream.errors import InputError
from globe_stream.recipe import load_recipe, packaged_recipe, parse_recipe

MINIMAL = {"model": "m", "run": "r"}
SYNTH = {"layers": 2, "experts": 6, "hidden": 20, "intermediate": 12}


@pytest.mark.parametrize(("values", "words"), [
    ({}, "model is missing"),
    ({"model": "m"}, "run is missing"),
    ({"model": 3, "run": "r"}, "model is missing"),
    ({**MINIMAL, "sede": {}}, "unknown key 'sede'; known: model, run"),
    ({**MINIMAL, "seed": {"rnak": 3}}, r"\[seed\]: unknown key 'rnak'; known: method"),
    ({**MINIMAL, "train": {"epoch": 3}}, r"\[train\]: unknown key 'epoch'"),
    ({**MINIMAL, "selection": {"x": 3}}, r"\[selection\]: unknown key 'x'"),
    ({**MINIMAL, "runtime": {"ram": "6GiB"}}, r"\[runtime\]: unknown key 'ram'"),
    ({**MINIMAL, "synth": {**SYNTH, "heads": 3}}, r"\[synth\]: unknown key 'heads'"),
    ({**MINIMAL, "synth": {"layers": 2}}, r"\[synth\]: experts is missing"),
    ({**MINIMAL, "synth": {**SYNTH, "layers": "2"}}, r"\[synth\]: layers = '2': a int is needed"),
    ({**MINIMAL, "export": [{"format": "factors", "out": "o", "x": 1}]}, "unknown key 'x'"),
    ({**MINIMAL, "export": [{"format": "zip", "out": "o"}]}, "factors or dense"),
    ({**MINIMAL, "export": [{"format": "dense"}]}, r"out \(a folder\)"),
    ({**MINIMAL, "export": {"format": "dense", "out": "o"}}, r"\[\[export\]\]"),
    ({**MINIMAL, "export": [{"format": "dense", "out": "o", "dtype": "int4"}]}, "int4"),
    ({**MINIMAL, "export": 3}, "export"),
    ({**MINIMAL, "seed": 3}, "seed"),
    ({**MINIMAL, "synth": [1]}, "synth"),
    ({**MINIMAL, "report": 3}, "report"),
    ({**MINIMAL, "seed": {"rank": "many"}}, r"\[seed\]: rank = 'many': a int is needed"),
    ({**MINIMAL, "seed": {"rank": 0}}, "--rank 0"),
    ({**MINIMAL, "runtime": {"memory": "lots"}}, "lots"),
])  # fmt: skip
def test_mistakes_are_named_before_anything_is_done(values, words):
    with pytest.raises(InputError, match=words):
        parse_recipe(values, "r.toml")


def test_files_that_cannot_be_read(tmp_path, tell):
    (tmp_path / "bad.toml").write_text("model = ")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name, words in (
        ("none.toml", "cannot be read"),
        ("bad.toml", "not valid TOML"),
        ("binary.toml", "not valid"),
    ):
        told = tell("run", tmp_path / name)
        assert told.code == 2
        assert words in told.err
        assert len(told.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["demo", "ci", "qwen1.5-moe-a2.7b", "qwen1.5-moe-one-layer"])
def test_the_recipes_of_the_project_are_valid(name):
    recipe = packaged_recipe(name)
    assert recipe.train is not None


def recipe_in(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(f"""
model = "{tmp_path}/model"
run = "{tmp_path}/run"
[synth]
layers = 2
experts = 6
hidden = 20
intermediate = 12
[seed]
bases = 4
[train]
epochs = 2
warmup_epochs = 1
[[export]]
format = "factors"
out = "{tmp_path}/factors"
""")
    return path


def test_a_recipe_is_carried_out_once(tmp_path, tell, monkeypatch):
    support.make_quick(monkeypatch.setattr)
    path = recipe_in(tmp_path)
    recipe = load_recipe(path)
    assert (recipe.seed.bases, recipe.train.epochs) == (4, 2)
    told = tell("run", path, "--json")
    assert told.code == 0, told.err
    document = json.loads(told.out)
    assert document["state"] == "trained"
    assert document["families"]["up"]["epoch"] == 2
    assert (tmp_path / "factors" / "globe_config.json").exists()
    before = {name: value for name, value in support.tree(tmp_path).items() if "lock" not in name}
    assert tell("run", path, "--json").code == 0
    after = {name: value for name, value in support.tree(tmp_path).items() if "lock" not in name}
    assert after == before


@pytest.mark.parametrize("event", [1, 2, 3, 4, 40, 150])
def test_a_recipe_that_was_killed_continues(tmp_path, event):
    path, log = recipe_in(tmp_path), tmp_path / "log"
    code = support.outcome(support.command, ["run", str(path)], log, event, support.KILL)
    assert code == -support.KILL
    code = support.outcome(support.command, ["run", str(path)], log)
    assert code == 0, log.read_text()[-1500:]
    assert (tmp_path / "factors" / "globe_config.json").exists()
