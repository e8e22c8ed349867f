"""Tables: plain lines where there is no terminal, ruled ones on a terminal."""

from globe_stream.cli import tables

HEADS, ROWS = ("family", "experts"), [("up", "24"), ("gate [bold]", "3")]


def test_plain_lines():
    assert tables.table(HEADS, ROWS).splitlines() == [
        "family       experts",
        "up                24",
        "gate [bold]        3",
    ]


def test_a_terminal_gets_a_rule_and_the_same_cells(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    lines = tables.table(HEADS, ROWS).splitlines()
    cells = [line.split() for line in lines if line.strip() and "─" not in line]
    assert cells == [["family", "experts"], ["up", "24"], ["gate", "[bold]", "3"]]
    assert any("─" in line for line in lines)
