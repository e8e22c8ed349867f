"""What is said to whoever interrupts a command is true of that command."""

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


@pytest.mark.parametrize(("arguments", "continues"), [
    (["seed", "m", "--run", "r"], True), (["train", "r"], True), (["run", "r.toml"], True),
    (["sweep", "m"], False), (["eval", "r"], False), (["eval", "r", "--work", "w"], True),
    (["eval", "r", "--work=w"], True), (["--help"], False), ([], False),
])  # fmt: skip
def test_who_continues(arguments, continues):
    assert ("continues" in after_interruption(arguments)) == continues
