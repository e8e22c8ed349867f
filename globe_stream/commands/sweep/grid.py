"""The points of a sweep: every combination of the values that some options are to take."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from globe_stream.config import (
    METHOD_FACTS,
    METHODS,
    OptionSpec,
    SeedConfig,
    TrainConfig,
    load_toml,
)
from globe_stream.config.options import Options
from globe_stream.errors import InputError, option
from globe_stream.io.records import Json
from globe_stream.io.system_errors import explained

Model = TypeVar("Model", bound=Options)
Values = Json
"""What the options that are swept are at one point, by field."""

_PLAIN = {"true": True, "false": False}
_NEEDED = {int: "a whole number", float: "a number", bool: "true or false"}
_LONGEST_NAME = 120


@dataclass(frozen=True)
class Grid:
    """The options that are swept, in order, and their values at every point."""

    names: tuple[str, ...]
    points: tuple[Values, ...]


@dataclass(frozen=True)
class Point:
    """One point: its name, which its folder bears, and all options; no `training`: a seed alone."""

    name: str
    values: Values
    seeding: SeedConfig
    training: TrainConfig | None


def grid_of(sets: Sequence[str], file: Path | None, methods: str | None) -> Grid:
    """The grid that `OPTION=A,B` texts, a grid file and a list of methods describe together.

    Without any of them, all methods. Raises InputError for options that are not known, named twice
    or without values, and for values that an option cannot have.
    """
    axes, singles = ({}, []) if file is None else _read(file)
    given = [_parsed(text) for text in sets]
    if methods is not None:
        given.append(("method", [*_known_methods(methods)]))
    for name, values in given:
        if name in axes:
            raise InputError(f"{option('set')} {name}: {name} is swept twice. Give it once")
        axes[name] = values
    if not axes and not singles:
        axes["method"] = list(METHODS)
    whole = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    names = dict.fromkeys([*axes, *(name for single in singles for name in single)])
    return Grid(tuple(names), (*(whole if axes else []), *singles))


def points_of(grid: Grid, seeding: SeedConfig, training: TrainConfig | None) -> list[Point]:
    """The points of `grid`, options that it does not name being those given.

    Options of `train` need its epochs: `training`, or epochs among what is swept. Proxies that a
    swept method cannot work on are replaced by its own, unless proxies are swept themselves.
    """
    trained = training is not None or "epochs" in grid.names
    _require_epochs(grid, trained)
    found = []
    for values in grid.points:
        name = point_name(values)
        try:
            seeds = _changed(_matching(seeding, values), values)
            trains = _changed(training or TrainConfig(), values) if trained else None
        except InputError as error:
            raise error.at(f"point {name}") from error
        found.append(Point(name, values, seeds, trains))
    return found


def point_name(values: Values) -> str:
    """The name of the point where options are `values`: a folder's name, short and readable."""
    text = ",".join(f"{name}={_shown(value)}" for name, value in values.items())
    name = re.sub(r"[^A-Za-z0-9=,._+-]", "-", text)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{digest(values)}"


def digest(value: object) -> str:
    """Ten hexadecimal digits that stand for `value`, which JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


# -- texts and files -----------------------------------------------------------------------------


def _read(file: Path) -> tuple[dict[str, list[JsonValue]], list[Values]]:
    """The axes of the table [grid] of `file`, and its single [[points]]."""
    try:
        with explained(file, "reading the grid"):
            tables = load_toml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not valid TOML: it is no UTF-8 text") from error
    axes, singles = tables.pop("grid", {}), tables.pop("points", [])
    if tables or not isinstance(axes, Mapping) or not isinstance(singles, list):
        raise InputError(
            f"{file}: give a table [grid] with a list of values for each option, "
            "and single points as [[points]]; nothing else"
        )
    if not axes and not singles:
        raise InputError(f"{file}: no option is swept. Give some in a table [grid]")
    for name, values in axes.items():
        _require_known(name, f"{file} [grid]")
        _require_distinct(name, values, f"{file} [grid]")
    for single in singles:
        for name in single:
            _require_known(name, f"{file} [[points]]")
    return dict(axes), singles


def _parsed(text: str) -> tuple[str, list[JsonValue]]:
    """Option and values of `text`, OPTION=A,B."""
    name, equals, rest = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals:
        raise InputError(f"{option('set')} {text!r}: give an option and its values, as bases=30,60")
    _require_known(name, option("set"))
    where, spec = f"{option('set')} {name}", _spec(name)
    values = [_value(spec, part.strip(), where) for part in rest.split(",")]
    _require_distinct(name, values, option("set"))
    return name, values


def _value(spec: OptionSpec, text: str, where: str) -> JsonValue:
    if not text:
        raise InputError(f"{where}: a value is missing. Give them as {spec.field}=A,B")
    if text == "none" and spec.default is None:
        return None
    try:
        return _PLAIN[text] if spec.kind is bool else spec.kind(text)
    except (ValueError, KeyError) as error:
        needed = _NEEDED.get(spec.kind, "another value")
        raise InputError(f"{where}={text}: {needed} is needed") from error


def _require_known(name: str, where: str) -> None:
    known = {**SeedConfig.specs(), **TrainConfig.specs()}
    if name not in known:
        raise InputError(
            f"{where} {name!r} is no option of seed or train; known: {', '.join(known)}"
        )


def _require_distinct(name: str, values: object, where: str) -> None:
    if not isinstance(values, list) or not values:
        raise InputError(f"{where} {name}: give a list of values")
    if len({json.dumps(value) for value in values}) < len(values):
        raise InputError(f"{where} {name}: a value stands there more than once. Give it once")


def _known_methods(text: str) -> list[str]:
    methods = [name.strip() for name in text.split(",")]
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise InputError(
            f"{option('methods')} {unknown[0]!r} is not known: use some of {', '.join(METHODS)}"
        )
    _require_distinct("method", methods, option("methods"))
    return methods


def _require_epochs(grid: Grid, trained: bool) -> None:
    of_training = [name for name in grid.names if name not in SeedConfig.specs()]
    if of_training and not trained:
        raise InputError(
            f"{option('set')} {of_training[0]}: an option of train, and nothing is trained. "
            f"Give {option('epochs')}"
        )


# -- options -------------------------------------------------------------------------------------


def _spec(name: str) -> OptionSpec:
    specs = SeedConfig.specs()
    return specs[name] if name in specs else TrainConfig.specs()[name]


def _changed(config: Model, values: Values) -> Model:
    """`config` with those of `values` that it has."""
    return config.changed(**{k: v for k, v in values.items() if k in type(config).specs()})


def _matching(seeding: SeedConfig, values: Values) -> SeedConfig:
    """`seeding` without its proxies if the method among `values` does not work on them."""
    facts = METHOD_FACTS.get(str(values.get("method")))
    if facts is None or "proxies" in values or seeding.proxies in facts.proxies:
        return seeding
    return seeding.changed(proxies=None)


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
