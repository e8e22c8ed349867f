"""Rows under heads: ruled on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns under `heads`, the first left-aligned, the others right-aligned.

    Ruled and coloured on a terminal, plain lines elsewhere.
    """
    lines = [list(heads), *(list(row) for row in rows)]
    return _ruled(lines) if sys.stdout.isatty() else _plain(lines)


def _plain(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _ruled(lines: list[list[str]]) -> str:
    ruled = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for k, head in enumerate(lines[0]):
        ruled.add_column(Text(head), justify="left" if k == 0 else "right", overflow="fold")
    for line in lines[1:]:
        ruled.add_row(*map(Text, line))
    console = Console()
    with console.capture() as captured:
        console.print(ruled)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).rstrip()
