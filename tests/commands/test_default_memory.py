"""Without --memory, how much of it happens to be free decides no byte of a result."""

import json
from pathlib import Path
from typing import Any

import pytest
import support

from globe_stream.commands import session

GIB = 1 << 30


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_less_free_memory_gives_the_same_bytes(
    checkpoint: Path, tmp_path: Path, tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = []
    for free in (64 * GIB, GIB):
        monkeypatch.setattr(session, "psutil", support.machine_with(free))
        run = tmp_path / f"run-{free}"
        assert tell("seed", checkpoint, "--run", run, "--families", "up").code == 0
        told = tell("train", run, "--epochs", 1, "--warmup-epochs", 0, "--json")
        assert told.code == 0
        budgets.append(json.loads(told.out)["memory_budget_bytes"])
    assert budgets[0] == budgets[1]
    first, second = (support.results(path) for path in sorted(tmp_path.glob("run-*")))
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("command", ["seed", "train"])
def test_too_little_free_memory_is_refused(
    checkpoint: Path,
    tmp_path: Path,
    tell: Any,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr(session, "psutil", support.machine_with(1 << 10))
    made = tmp_path / "run"
    given = ("seed", checkpoint, "--run", made)
    if command == "train":
        monkeypatch.undo()
        assert tell(*given, "--families", "up", "--dictionary-rounds", 1).code == 0
        monkeypatch.setattr(session, "psutil", support.machine_with(1 << 10))
        given = ("train", made, "--epochs", 1)
    before = support.tree(made)
    told = tell(*given)
    assert told.code == 2
    assert "--memory: not given, so " in told.err
    assert len(told.err.splitlines()) == 1
    unlocked = {n: v for n, v in support.tree(made).items() if not n.startswith("lock")}
    assert unlocked == {n: v for n, v in before.items() if not n.startswith("lock")}
    assert tell(*given, "--memory", "2GiB").code == 0
