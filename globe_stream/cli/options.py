"""Click options made from the fields of the configuration records."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import click

from globe_stream.commands.wording import flag
from globe_stream.config import Checked, Limits, limits_of, plain_type
from globe_stream.errors import spelled

Command = Callable[..., Any]
Record = TypeVar("Record", bound=Checked)


def options_of(*records: type[Checked], skip: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """A decorator that adds an option for every field of `records`, shared names once."""

    def decorate(command: Command) -> Command:
        chosen: dict[str, dataclasses.Field[Any]] = {}
        for record in records:
            for item in dataclasses.fields(record):  # type: ignore[arg-type]
                if item.name not in skip:
                    chosen.setdefault(item.name, item)
        for item in reversed(chosen.values()):
            command = _option(item)(command)
        return command

    return decorate


def record_from(record: type[Record], values: dict[str, Any]) -> Record:
    """Build `record` from the options among `values` (checked; InputError on bad ones)."""
    names = {item.name for item in dataclasses.fields(record)}  # type: ignore[arg-type]
    return record(**{name: value for name, value in values.items() if name in names})


def _option(item: "dataclasses.Field[Any]") -> Callable[[Command], Command]:
    limits, kind = limits_of(item), plain_type(item)
    shown: dict[str, Any] = {"default": item.default, "show_default": item.default is not None}
    text = spelled(limits.help, flag) + _range(limits)
    if kind is bool:
        return click.option(
            flag(item.name),
            item.name,
            is_flag=True,
            default=item.default,
            help=spelled(limits.help, flag),
        )
    if limits.choices:
        return click.option(
            flag(item.name),
            item.name,
            type=click.Choice(limits.choices),
            help=spelled(limits.help, flag),
            **shown,
        )
    return click.option(
        flag(item.name), item.name, type=kind, metavar=limits.metavar, help=text, **shown
    )


def _range(limits: Limits) -> str:
    if limits.low is None:
        return ""
    if limits.high is None:
        return f" [at least {limits.low:g}]"
    return f" [{limits.low:g} to {limits.high:g}]"
