"""What every configuration model has: bounds checked at once, one line for a mistake, identity."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from globe_stream.errors import InputError, option
from globe_stream.io.records import Json, JsonObject

RUNTIME: Json = {"runtime": True}
"""`json_schema_extra` of a field that changes the course of a run, not what it computes."""

_NEEDED = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple: "a list of paths",
}
_LONGEST = 60
_DIGITS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class OptionSpec:
    """One field as a command line or a reader of files needs it.

    `kind` is the type without `| None`, a tuple being one of paths; `help` has options marked
    (`errors.option`).
    """

    field: str
    kind: type
    default: Any
    required: bool
    choices: tuple[str, ...]
    low: float | None
    high: float | None
    help: str
    metavar: str | None
    runtime: bool

    @property
    def range(self) -> str:
        """The bounds in words, empty without any."""
        bounds = (("at least", self.low), ("at most", self.high))
        return " and ".join(
            f"{word} {_plain(value)}" for word, value in bounds if value is not None
        )

    @property
    def interval(self) -> str:
        """The bounds as short as they go: "0 to 1"."""
        if self.low is not None and self.high is not None:
            return f"{_plain(self.low)} to {_plain(self.high)}"
        return self.range


class Options(BaseModel):
    """Base of the configuration models: frozen, strict, no unknown fields.

    Wrong values raise InputError with one line that names the field, the value and what is
    allowed. `prefix` stands before the names of the fields where they are options.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    prefix: ClassVar[str] = ""

    if not TYPE_CHECKING:

        def __init__(self, /, **values: object) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise InputError(_one_line(type(self), error)) from error

    @model_validator(mode="after")
    def _checked(self) -> Self:
        self.check()
        return self

    def check(self) -> None:
        """Conditions across fields; raises InputError."""

    @classmethod
    def specs(cls) -> dict[str, OptionSpec]:
        """Every field by name."""
        return _specs(cls)

    @classmethod
    def from_mapping(cls, values: JsonObject, where: str) -> Self:
        """The model that `values` (a TOML table found at `where`) describes."""
        try:
            return cls(**values)
        except InputError as error:
            raise error.at(where) from error

    def changed(self, **values: object) -> Self:
        """The same with other values, checked; fields that were not given stay so."""
        return type(self)(**{**self.model_dump(exclude_unset=True), **values})

    def unused(self) -> dict[str, str]:
        """Fields that nothing reads beside what the others say, and why; options are marked."""
        return {}

    def ignored(self) -> list[str]:
        """One line for each reason for which values given have no effect; options are marked."""
        names: dict[str, list[str]] = {}
        for name, reason in self.unused().items():
            was_given = name in self.model_fields_set
            if was_given and getattr(self, name) != self.specs()[name].default:
                names.setdefault(reason, []).append(option(self.prefix + name))
        return [f"{', '.join(given)}: without effect {reason}" for reason, given in names.items()]

    def identity(self) -> Json:
        """The fields that decide what is computed, by name; those without effect at defaults."""
        unused = self.unused()
        return {
            name: spec.default if name in unused else getattr(self, name)
            for name, spec in self.specs().items()
            if not spec.runtime
        }


def whole_number(text: str) -> int | None:
    """The number that the decimal digits `text` say, at most nine of them; None for other text."""
    return int(text) if _DIGITS.fullmatch(text) else None


def differences(old: JsonObject, new: JsonObject) -> list[str]:
    """One phrase per key whose value differs, spelled out."""
    return [
        f"{key}: was {_setting(old.get(key))}, now {_setting(new.get(key))}"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key)
    ]


def _setting(value: object) -> str:
    return "not set" if value is None else repr(value)


@cache
def _specs(model: type[Options]) -> dict[str, OptionSpec]:
    return {name: _spec(name, info) for name, info in model.model_fields.items()}


def _spec(name: str, info: FieldInfo) -> OptionSpec:
    kind, choices = _kind(info.annotation)
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    bounds = {type(bound): bound for bound in info.metadata}
    low, high = bounds.get(Ge), bounds.get(Le)
    return OptionSpec(
        field=name,
        kind=kind,
        default=None if info.is_required() else info.default,
        required=info.is_required(),
        choices=choices,
        low=None if low is None else low.ge,
        high=None if high is None else high.le,
        help=info.description or "",
        metavar=typing.cast("str | None", extra.get("metavar")),
        runtime=bool(extra.get("runtime")),
    )


def _kind(annotation: Any) -> tuple[type, tuple[str, ...]]:
    """The plain type of a field, and its choices."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) is Literal:
        return str, typing.get_args(annotation)
    return typing.get_origin(annotation) or annotation, ()


def _plain(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _one_line(model: type[Options], error: ValidationError) -> str:
    """The first mistake that pydantic found, unknown fields before others."""
    faults = error.errors(include_url=False)
    fault = next((one for one in faults if one["type"] == "extra_forbidden"), faults[0])
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {_shown(name)}; known: {', '.join(model.specs())}"
    return _fault_of(model.specs()[name], option(model.prefix + name), fault)


def _fault_of(spec: OptionSpec, name: str, fault: ErrorDetails) -> str:
    if fault["type"] == "missing":
        return f"{name} is missing: give {_needed(spec)}"
    value = _shown(fault["input"])
    if spec.choices:
        return f"{name} {value} is not known: use one of {', '.join(spec.choices)}"
    if fault["type"] in ("greater_than_equal", "less_than_equal", "finite_number"):
        return f"{name} {value} is out of range: {spec.range or 'a finite number is needed'}"
    return f"{name} = {value}: {_needed(spec)} is needed"


def _needed(spec: OptionSpec) -> str:
    return f"one of {', '.join(spec.choices)}" if spec.choices else _NEEDED.get(spec.kind, "a path")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
