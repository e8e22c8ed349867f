"""Click options made from the fields of the configuration models."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from globe_stream.commands.wording import flag
from globe_stream.config import Options, OptionSpec
from globe_stream.errors import spelled

Command = Callable[..., Any]
Model = TypeVar("Model", bound=Options)


def options_of(*models: type[Options], skip: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """A decorator that adds an option for every field of `models`, shared names once."""

    def decorate(command: Command) -> Command:
        chosen: dict[str, OptionSpec] = {}
        for model in models:
            for name, spec in model.specs().items():
                if name not in skip:
                    chosen.setdefault(model.prefix + name, spec)
        for name, spec in reversed(chosen.items()):
            command = _option(name, spec)(command)
        return command

    return decorate


def record_from(model: type[Model], values: Mapping[str, object]) -> Model:
    """Build `model` from the options among `values` (checked; InputError on bad ones).

    Of a running command only those that the user gave count as given.
    """
    named = {name: model.prefix + name for name in model.specs()}
    return model(
        **{
            name: values[parameter]
            for name, parameter in named.items()
            if parameter in values and _was_given(parameter)
        }
    )


def _was_given(parameter: str) -> bool:
    context = click.get_current_context(silent=True)
    if context is None:
        return True
    return context.get_parameter_source(parameter) is not ParameterSource.DEFAULT


def _option(name: str, spec: OptionSpec) -> Callable[[Command], Command]:
    text = spelled(spec.help, flag)
    if spec.kind is bool:
        return click.option(flag(name), name, is_flag=True, default=spec.default, help=text)
    shown: dict[str, Any] = (
        {"required": True}
        if spec.required
        else {"default": spec.default, "show_default": spec.default is not None}
    )
    if spec.interval:
        text += f" [{spec.interval}]"
    if spec.kind is tuple:
        shown = {"multiple": True}
    return click.option(
        flag(name), name, type=_type(spec), metavar=spec.metavar, help=text, **shown
    )


def _type(spec: OptionSpec) -> Any:
    if spec.choices:
        return click.Choice(spec.choices)
    return click.Path(path_type=Path) if spec.kind in (Path, tuple) else spec.kind
