"""What is said to whoever interrupts a command is true of that command."""

import os
import signal
import subprocess
import sys

import pytest

from globe_stream.checkpoint import index
from globe_stream.cli.resuming import after_interruption
from globe_stream.commands import plan
from globe_stream.synthetic import checkpoints as synth


def interrupted(*_args, **_kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("arguments", "module", "name", "words"), [
    (["inspect", "m"], index, "open_index", "it changes nothing"),
    (["plan", "m"], plan, "plan", "it changes nothing"),
    (["synth", "--out", "o"], synth, "write_synthetic", "starts over"),
])  # fmt: skip
def test_commands_that_do_not_continue_do_not_promise_to(
    tell, monkeypatch, arguments, module, name, words
):
    monkeypatch.setattr(module, name, interrupted)
    told = tell(*arguments)
    assert (told.code, told.out) == (130, "")
    assert words in told.err
    assert "continues" not in told.err


def test_ctrl_c_within_a_library_that_makes_an_error_of_it(tell, monkeypatch):
    def build(*_args):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("error building the schema: KeyboardInterrupt") from None

    monkeypatch.setattr(index, "open_index", build)
    told = tell("inspect", "m")
    assert (told.code, told.out) == (130, "")
    assert told.err.splitlines() == ["globe-stream: interrupted; it changes nothing; give it again"]


IMPORTING = """
import contextlib, signal, sys
[_, module, passed_over] = sys.argv
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            with contextlib.suppress(*[KeyboardInterrupt] if passed_over else []):
                exec("signal.raise_signal(signal.SIGINT)")
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Stop())
sys.argv[1:] = ["status", "/nowhere"]
from globe_stream.__main__ import main
main()
"""


@pytest.mark.parametrize(("module", "passed_over"), [
    ("click", ""), ("pydantic_core", ""), ("torch", ""), ("numpy.matrixlib", ""),
    ("torch", "passed over"),
])  # fmt: skip
def test_ctrl_c_while_the_program_is_imported_is_one_line(tmp_path, module, passed_over):
    (tmp_path / "importing.py").write_text(IMPORTING)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    told = subprocess.run(
        [sys.executable, "-m", "importing", module, passed_over],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (told.returncode, told.stdout) == (130, "")
    assert told.stderr == "globe-stream: interrupted; it changes nothing; give it again\n"


@pytest.mark.parametrize(("arguments", "continues"), [
    (["seed", "m", "--run", "r"], True), (["train", "r"], True), (["run", "r.toml"], True),
    (["sweep", "m"], False), (["eval", "r"], False), (["eval", "r", "--work", "w"], True),
    (["eval", "r", "--work=w"], True), (["--help"], False), ([], False),
])  # fmt: skip
def test_who_continues(arguments, continues):
    assert ("continues" in after_interruption(arguments)) == continues
