"""What the README tells readers to type works as it stands there."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from globe_stream.cli.main import run

ROOT = Path(__file__).parents[1]


def blocks(marker: str) -> list[str]:
    """The code blocks that follow `<!-- marker -->` in the README, up to the next text."""
    after = (ROOT / "README.md").read_text().split(f"<!-- {marker} -->\n")[1]
    return re.findall(r"\A(?:```\w+\n(.*?)```\n)(?:```\w+\n(.*?)```\n)?", after, re.DOTALL)[0]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_from_checkpoint_to_text(tmp_path, monkeypatch):
    from sample_runs import tiny_model, with_tokenizer

    monkeypatch.chdir(tmp_path)
    model = with_tokenizer(tiny_model(tmp_path / "tiny"))
    commands, program = blocks("text")
    assert len(re.findall(r"^.+$", commands + program, re.MULTILINE)) == 10
    install, *lines = commands.replace("MODEL", str(model)).splitlines()
    assert install == "pip install 'globe-stream[hf]'"
    for line in lines:
        assert run(shlex.split(line)[1:]) == 0, line
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, {})
    assert printed.getvalue().startswith("Experts share")
    assert len(printed.getvalue().strip()) > len("Experts share")


def test_ci_runs_the_readmes_own_command():
    command, _ = blocks("tests")
    assert "pip install torch==2.13.0" in command
    assert command.strip().endswith("-m pytest -n auto")
    assert "<!-- tests -->" in (ROOT / ".ci" / "run").read_text()
