"""Recipes: every key is checked before anything is done; carrying one out again continues."""

import json

import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st

from globe_stream.cli.main import run as run_command_line
from globe_stream.commands.recipe import Recipe, load_recipe, parse_recipe
from globe_stream.config import ExportConfig, SeedConfig, TrainConfig, load_toml
from globe_stream.errors import InputError

MINIMAL = {"model": "m", "run": "r"}
SYNTH = {"layers": 2, "experts": 6, "hidden": 20, "intermediate": 12}


@pytest.mark.parametrize(("values", "words"), [
    ({}, "model is missing"),
    ({"model": "m"}, "run is missing"),
    ({"model": 3, "run": "r"}, "model = 3: text is needed"),
    ({**MINIMAL, "sede": {}}, "unknown key 'sede'; known: model, run"),
    ({**MINIMAL, "seed": {"rnak": 3}}, r"\[seed\]: unknown key 'rnak'; known: method"),
    ({**MINIMAL, "train": {"epoch": 3}}, r"\[train\]: unknown key 'epoch'"),
    ({**MINIMAL, "selection": {"x": 3}}, r"\[selection\]: unknown key 'x'"),
    ({**MINIMAL, "runtime": {"ram": "6GiB"}}, r"\[runtime\]: unknown key 'ram'"),
    ({**MINIMAL, "synth": {**SYNTH, "heads": 3}}, r"\[synth\]: unknown key 'heads'"),
    ({**MINIMAL, "synth": {**SYNTH, "layers": "2"}},
     r"\[synth\]: layers = '2': a whole number is needed"),
    ({**MINIMAL, "export": [{"format": "factors", "out": "o", "x": 1}]}, "unknown key 'x'"),
    ({**MINIMAL, "export": [{"format": "zip", "out": "o"}]}, "use one of factors, dense"),
    ({**MINIMAL, "export": [{"format": "dense"}]}, "out is missing: give a path"),
    ({**MINIMAL, "export": {"format": "dense", "out": "o"}}, r"\[\[export\]\]"),
    ({**MINIMAL, "export": [{"format": "dense", "out": "o", "dtype": "int4"}]}, "int4"),
    ({**MINIMAL, "export": 3}, "export"),
    ({**MINIMAL, "seed": 3}, "seed"),
    ({**MINIMAL, "synth": [1]}, "synth"),
    ({**MINIMAL, "report": 3}, "report"),
    ({**MINIMAL, "seed": {"rank": "many"}}, r"\[seed\]: rank = 'many': a whole number is needed"),
    ({**MINIMAL, "seed": {"rank": 0}}, r"r.toml \[seed\]: rank 0"),
    ({**MINIMAL, "seed": {"method": 3}}, "method 3 is not known: use one of ts_pca"),
    ({**MINIMAL, "train": {"momentum": "much"}}, "momentum = 'much': a number is needed"),
    ({**MINIMAL, "runtime": {"memory": "1GX"}}, r"r.toml \[runtime\]: memory: size '1GX'"),
    ({**MINIMAL, "synth": {**SYNTH, "noise": 1}}, r"\[synth\]: noise .* need planted_bases"),
    ({**MINIMAL, "runtime": {"memory": "lots"}}, "lots"),
])  # fmt: skip
def test_mistakes_are_named_before_anything_is_done(values, words):
    with pytest.raises(InputError, match=words):
        parse_recipe(values, "r.toml")


def test_files_that_cannot_be_read(tmp_path, tell):
    (tmp_path / "bad.toml").write_text("model = ")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name, words in (
        ("none.toml", "no such file or folder while reading the recipe"),
        ("bad.toml", "not valid TOML"),
        ("binary.toml", "not valid"),
    ):
        told = tell("run", tmp_path / name)
        assert told.code == 2
        assert words in told.err
        assert len(told.err.splitlines()) == 1


@pytest.mark.parametrize("written", [4, "4", "none"])
def test_the_wanted_support_may_be_a_number(written):
    recipe = parse_recipe({**MINIMAL, "train": {"target_support": written}}, "r.toml")
    assert recipe.train.target_support == str(written)


def recipe_in(tmp_path, *, changes=(), home=None):
    """A recipe whose model, run and export are in `home`; each of `changes` is (old, new) text."""
    path = tmp_path / "recipe.toml"
    text = recipe_text(home or tmp_path)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def kept_files(folder):
    """Content of every file below `folder` but those of locks, by name."""
    return {name: value for name, value in support.tree(folder).items() if "lock" not in name}


def recipe_text(tmp_path):
    return f"""
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
"""


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
    before = kept_files(tmp_path)
    assert tell("run", path, "--json").code == 0
    after = kept_files(tmp_path)
    assert after == before


@pytest.mark.slow
def test_a_recipe_that_was_killed_continues(tmp_path):
    """In its first steps, which make the model, and in later ones."""
    path, log = recipe_in(tmp_path), tmp_path / "log"
    for event in (1, 2, 3, 4, 40, 150):
        code = support.outcome(support.command, ["run", str(path)], log, event, support.KILL)
        assert code == -support.KILL
    code = support.outcome(support.command, ["run", str(path)], log)
    assert code == 0, log.read_text()[-1500:]
    assert (tmp_path / "factors" / "globe_config.json").exists()


@pytest.fixture(scope="module")
def carried_out(tmp_path_factory):
    """A folder with the model, run and export of the recipe."""
    home = tmp_path_factory.mktemp("recipe")
    with pytest.MonkeyPatch.context() as patch:
        support.make_quick(patch.setattr)
        assert run_command_line(["run", str(recipe_in(home))]) == 0
    return home


@pytest.mark.slow
@pytest.mark.parametrize(("change", "words"), [
    (("layers = 2", "layers = 3"), ["model: was made with another [synth]", "layers: was 2, now 3",
                                    "Delete or rename"]),
    (("bases = 4", "bases = 5"), ["seed bases: was 4, now 5", "name another run in it"]),
    (("warmup_epochs = 1", "momentum = 0.5"), ["now 0.5", "Change the recipe"]),
    (("\nepochs = 2", "\nepochs = 3"), ["factors: is taken", "Delete or rename"]),
    (("bases = 4", "bases = 600"), ["bases 600: more atoms than the 12 experts"]),
])  # fmt: skip
def test_what_a_changed_recipe_may_not_do_is_refused_before_any_work(
    tmp_path, tell, carried_out, change, words
):
    path = recipe_in(tmp_path, changes=[change], home=carried_out)
    before = {
        name: value for name, value in support.tree(carried_out).items() if "lock" not in name
    }
    told = tell("run", path)
    assert (told.code, told.out, len(told.err.splitlines())) == (2, "", 1), told.err
    for word in words:
        assert word in told.err
    assert "--" not in told.err
    after = kept_files(carried_out)
    assert after == before


def test_impossible_sizes_are_found_before_the_model_is_made(tmp_path, tell):
    told = tell("run", recipe_in(tmp_path, changes=[("bases = 4", "bases = 600")]))
    assert told.code == 2
    assert "bases 600: more atoms than the 12 experts" in told.err
    assert [child.name for child in tmp_path.iterdir()] == ["recipe.toml"]


def test_a_checkpoint_that_no_synth_made_is_left_alone(tmp_path, tell):
    support.write_checkpoint(tmp_path / "model")
    told = tell("run", recipe_in(tmp_path))
    assert told.code == 2
    assert "that no [synth] made" in told.err


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted({*SeedConfig.specs(), *TrainConfig.specs(), *ExportConfig.specs()})
tables = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), values, max_size=4)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.data())
def test_any_recipe_is_understood_or_refused_in_one_line(data):
    keys = st.sampled_from(sorted(Recipe.specs())) | st.text(max_size=5)
    recipe = data.draw(st.dictionaries(keys, values | tables | st.lists(tables), max_size=5))
    made, said = None, ""
    try:
        made = parse_recipe(data.draw(st.sampled_from([recipe, {**recipe, **MINIMAL}])), "r.toml")
    except InputError as error:
        said = str(error)
    assert made is not None or said.startswith("r.toml")
    assert len(said.splitlines()) <= 1


@given(st.text() | st.text(alphabet="[]{}=\"'.,#\n abc019-_"))
def test_any_text_is_toml_or_refused_in_one_line(text):
    said = ""
    try:
        load_toml(text, "r.toml")
    except InputError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1
