"""`report`: one HTML page about a run, or several side by side, with results and pictures."""

from collections.abc import Sequence
from pathlib import Path

from globe_stream.errors import InputError, option
from globe_stream.report.data import gather
from globe_stream.report.page import render, render_several, write_page

NAME = "report.html"


def report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of the runs at `paths` to `out`; returns where.

    Of one run the default is NAME in it. Raises InputError when one of `paths` is no run directory,
    or `out` is missing or cannot be written.
    """
    if out is None and len(paths) > 1:
        raise InputError(
            f"report: {len(paths)} runs side by side belong to none of them. "
            f"Give the HTML file to write, with {option('out')}"
        )
    target = out or paths[0] / NAME
    if target.is_dir():
        raise InputError(
            f"{target}: is a folder. Give the HTML file to write, with {option('out')}"
        )
    gathered = [gather(path) for path in dict.fromkeys(paths)]
    page = render(gathered[0]) if len(gathered) == 1 else render_several(gathered)
    write_page(target, page)
    return target
