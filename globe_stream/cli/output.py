"""A command's result on standard output: one line of JSON, or text for people."""

import json
from collections.abc import Callable
from typing import TypeVar

import click

from globe_stream.io.records import Record

Result = TypeVar("Result", bound=Record)


def show(result: Result, text: Callable[[Result], str], *, as_json: bool) -> None:
    """Print `result` as one JSON document, or as `text` makes it."""
    click.echo(json.dumps(result.to_json()) if as_json else text(result))
