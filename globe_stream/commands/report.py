"""`report`: one HTML page about a run, with its status and pictures."""

from pathlib import Path

from globe_stream.errors import InputError, option
from globe_stream.report.data import gather
from globe_stream.report.page import render, write_page

NAME = "report.html"


def report(path: Path, out: Path | None = None) -> Path:
    """Write the report of the run at `path` to `out` (default: NAME in it); returns where.

    Raises InputError when `path` is no run directory, or `out` cannot be written.
    """
    target = out or path / NAME
    if target.is_dir():
        raise InputError(
            f"{target}: is a folder. Give the HTML file to write, with {option('out')}"
        )
    write_page(target, render(gather(path)))
    return target
