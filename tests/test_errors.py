"""Options in messages: named by their fields below the front, spelled by whoever prints them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

import globe_stream
from globe_stream.cli.main import cli
from globe_stream.commands.wording import flag, in_words_of_recipes, worded
from globe_stream.errors import GlobeError, InputError, Mismatch, option, spelled

ROOT = Path(globe_stream.__file__).parent


def _modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def _strings(path: Path) -> Iterator[str]:
    """The text of every string in a module, docstrings and f-strings' literal parts too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _flags(text: str) -> list[str]:
    return [word for word in text.replace("'", " ").replace("`", " ").split()
            if word.startswith("--") and word[2:3].isalpha()]  # fmt: skip


def test_no_string_below_the_command_line_spells_a_flag():
    below = [path for path in _modules() if ROOT / "cli" not in path.parents]
    spelt = {path.name: flags for path in below
             if (flags := [word for text in _strings(path) for word in _flags(text)])}  # fmt: skip
    assert len(below) > 100
    assert not spelt


def test_the_search_for_flags_finds_them(tmp_path):
    (tmp_path / "module.py").write_text('"""--a"""\nx = f"give --bases {1} or `--rank`"\n')
    (text,) = [t for t in _strings(tmp_path / "module.py") if "bases" in t]
    assert _flags(text) == ["--bases"]


def test_every_option_named_in_a_message_is_one_of_the_command_line():
    known = {opt for command in cli.commands.values() for param in command.params
             if isinstance(param, click.Option) for opt in param.opts}  # fmt: skip
    named = {
        call.args[0].value
        for path in _modules()
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "option"
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    }
    assert len(named) > 20
    assert {flag(name) for name in named} - {"--layout"} <= known


def test_an_error_names_fields_until_it_is_spelled():
    error = InputError(f"{option('rank_ratio')} 2: too large. Give {option('rank')}").at("x.toml")
    assert str(error) == "x.toml: rank_ratio 2: too large. Give rank"
    assert worded(error.message) == "x.toml: --rank-ratio 2: too large. Give --rank"


def test_recipes_speak_of_keys_and_of_the_recipe():
    with pytest.raises(InputError, match=r"^bank_scope 3: give run$"), in_words_of_recipes("r"):
        raise InputError(f"{option('bank_scope')} 3: give {option('run')}")
    said = "start over with a new run folder"
    with pytest.raises(GlobeError, match=said), in_words_of_recipes("r"):
        raise GlobeError(f"damaged: start over with {option('fresh')}")
    said = r"changed rank\. Change the recipe back.* delete r to"
    with pytest.raises(InputError, match=said), in_words_of_recipes("r"):
        raise Mismatch(f"changed {option('rank')}", f"Give {option('fresh')}")
    assert worded(option("rank")) == "--rank"


@given(st.text(), st.text())
def test_text_from_outside_is_never_touched(before, after):
    for text in (before, after):
        if "\ufdd0" not in text:
            assert spelled(text, flag) == text
    spelled(f"{before}{option('rank')}{after}", flag)
    assert spelled("\ufdd0a", flag) == "--a"
