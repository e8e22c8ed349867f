"""Records: frozen dataclasses that are kept as JSON, each with one JSON form.

What a run, an export or a document keeps is a `Record`: a frozen dataclass of plain values, tuples,
mappings and other records. pydantic checks what is read, field by field: a key that is unknown or
missing, or a value of another type, is refused in one line that names the file and the key.
A field is spelled otherwise in JSON by `Annotated[T, Field(alias="name")]`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import (
    ConfigDict,
    JsonValue,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from globe_stream.errors import InputError

Json = dict[str, JsonValue]
"""A JSON object whose keys are not known beforehand, such as a model's own config.json."""

JsonObject = Mapping[str, object]
"""A JSON object that is only read, key by key: what a key holds is checked where it is used."""

Scalars = Mapping[str, int | float]
"""Plain numbers by name, such as those an accumulator continues from."""

ANOTHER_VERSION = "Another version of globe-stream wrote it, or it was edited: make it anew"


@dataclass(frozen=True)
class Record:
    """Base of frozen dataclasses with a JSON form; unknown and missing keys are refused."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, ser_json_inf_nan="constants"
    )

    @classmethod
    def from_json(cls, value: object, where: str, advice: str = ANOTHER_VERSION) -> Self:
        """The record that `value`, parsed JSON found at `where`, describes.

        Raises InputError, one line with `where`, the key and `advice`, when it does not fit.
        """
        try:
            record: Self = _adapter(cls).validate_json(json.dumps(value))
        except ValidationError as error:
            raise InputError(f"{where}: {_first_problem(error)}. {advice}") from None
        return record

    @classmethod
    def read(cls, path: Path, advice: str) -> Self:
        """The record in the JSON file `path`.

        Raises InputError, one line with the path, the problem and `advice`, when it is damaged.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}). {advice}") from error
        return cls.from_json(value, str(path), advice)

    def to_json(self) -> Json:
        """Every field under its JSON name; tuples become lists, numbers stay as they are."""
        plain: Json = _adapter(type(self)).dump_python(self, mode="json", by_alias=True)
        return plain


@dataclass(frozen=True)
class Compact(Record):
    """Base of records whose JSON form has no keys for the fields that are None."""

    @model_serializer(mode="wrap")
    def _without_none(self, whole: SerializerFunctionWrapHandler) -> Json:
        return {name: value for name, value in whole(self).items() if value is not None}


_ADAPTERS: dict[type[Record], TypeAdapter[Any]] = {}


def _adapter(cls: type[Record]) -> TypeAdapter[Any]:
    """pydantic's checker for `cls`, made once."""
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def _first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints as one phrase."""
    problem = error.errors(include_url=False)[0]
    key = _dotted(problem["loc"])
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key} is not known"
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{key}: {message}, found {problem['input']!r}"[:300]


def _dotted(place: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in place) or "it"
