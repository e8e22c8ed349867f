"""Progress lines: rate, time left, error and memory, on standard error only."""

import re

import pytest

from globe_stream.engine import progress
from globe_stream.engine.progress import Progress


@pytest.fixture
def _no_waiting(monkeypatch):
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)


@pytest.mark.usefixtures("_no_waiting")
def test_lines_say_rate_time_left_error_and_memory(capsys, monkeypatch):
    now = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    bar = Progress().bar("up epoch 1", 100, done=20)
    bar.advance(20, "relF 0.5000", 3 << 30)
    bar.advance(20, "relF 0.4000", 3 << 30)
    bar.close()
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "up epoch 1: 40/100 experts, 2.0/s, 30.0 s left, relF 0.5000, 3.00 GiB",
        "up epoch 1: 60/100 experts, 2.0/s, 20.0 s left, relF 0.4000, 3.00 GiB",
    ]


@pytest.mark.usefixtures("_no_waiting")
def test_silence(capsys):
    quiet = Progress(silent=True)
    quiet.say("hello")
    bar = quiet.bar("x", 10)
    bar.advance(5, "note", 1)
    bar.close()
    assert capsys.readouterr() == ("", "")


def test_short_passes_say_nothing(capsys):
    bar = Progress().bar("x", 10)
    bar.advance(5, "note", 1)
    bar.close()
    Progress().say("a line")
    assert capsys.readouterr() == ("", "a line\n")


def test_a_terminal_gets_a_bar_with_rate_time_left_and_memory(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.step_bar("export dense", unit="files") as step:
        step(1, 4, "first")
        step(4, 4, "last")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "export dense" in shown
    assert "4/4 files" in shown
    assert "last, " in shown
    assert "iB" in shown


@pytest.mark.parametrize("steps", [((2, 2), (1, 8)), ((1, 1), (1, 8))])
def test_a_count_that_falls_or_another_total_begins_another_bar(capsys, monkeypatch, steps):
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    with progress.step_bar("eval") as step:
        for done, total in steps:
            step(done, total, "")
    told = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in told] == [
        f"eval: {done}/{total} experts" for done, total in steps
    ]


def test_a_tally_passes_on_the_sum():
    calls = []
    tally = progress.Tally(5, lambda *call: calls.append(call))
    tally.advance(2, "a")
    tally.advance(3, "b")
    assert calls == [(2, 5, "a"), (5, 5, "b")]
    progress.Tally(5, None).advance(1, "nobody listens")


@pytest.mark.usefixtures("_no_waiting")
def test_expected_steps_make_bars_speak_of_the_whole_command(capsys, monkeypatch):
    now = iter([0.0, 10.0, 0.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    shown = Progress()
    shown.outlook.expect({"a": 5.0, "b": 2.0, "c": 1.0, "d": 3.0})
    shown.bar("b", 4).advance(1, "", 1 << 30)  # 40 s where 2 were expected: a is over, 4 to come
    shown.bar("other", 4).advance(1, "", 1 << 30)
    assert capsys.readouterr().err.splitlines() == [
        "b: 1/4 experts, 0.1/s, 30.0 s left, 1:50 min in all, 1.00 GiB",
        "other: 1/4 experts, 0.1/s, 30.0 s left, 1.00 GiB",
    ]
