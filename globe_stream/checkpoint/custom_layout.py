"""A rule for a model type given by the user: plain data, checked against names and shapes.

The file is TOML or JSON with the fields of `layouts.ModelType`: `kinds`, `module`, `shared`,
`count`, `size`, `gated` and `names`, a table from the name of a projection to its role.
"""

import json
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

from globe_stream.checkpoint.layouts import KINDS, ModelType
from globe_stream.errors import InputError, option
from globe_stream.io.records import JsonObject

_TEXTS = ("kinds", "module", "shared", "count", "size", "padding")
_FIELDS = (*_TEXTS, "gated", "names")
_ROLES = ("gate", "up", "down", "gate_up")


def layout_text(given: str) -> str:
    """The rule as one line of JSON, whether `given` is the path of a file or such a line.

    Raises InputError for a missing file, for text that is neither TOML nor JSON, and for a rule
    that is not valid.
    """
    if given.lstrip().startswith("{"):
        values, where = _parse(given, option("layout")), option("layout")
    else:
        where = f"{option('layout')} {given}"
        try:
            values = _parse(Path(given).expanduser().read_text(encoding="utf-8"), where)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise InputError(f"{where}: cannot be read: {reason}.") from error
    _rule(values, where)
    return json.dumps(values, sort_keys=True)


@lru_cache(maxsize=8)
def rule_of(text: str) -> ModelType:
    """The rule that a line made by `layout_text` says."""
    return _rule(json.loads(text), option("layout"))


def _parse(text: str, where: str) -> JsonObject:
    try:
        if text.lstrip().startswith("{"):
            return dict(json.loads(text))
        return tomllib.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: is neither TOML nor JSON: {error}.") from error


def _rule(values: JsonObject, where: str) -> ModelType:
    """The rule, once every field is found to be of its kind."""
    unknown = sorted(set(values) - set(_FIELDS))
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(_FIELDS)}.")
    for name in _TEXTS:
        if name in values and not (isinstance(values[name], str) and values[name]):
            raise InputError(f"{where}: {name} is {values[name]!r}; text is needed.")
    kinds = values.get("kinds")
    if not isinstance(kinds, str) or not set(kinds) <= set(KINDS):
        raise InputError(
            f"{where}: kinds is {kinds!r}; some of the letters {KINDS} are needed "
            "(docs/layouts.md)."
        )
    if not isinstance(values.get("gated", True), bool):
        raise InputError(f"{where}: gated is {values['gated']!r}; true or false is needed.")
    names = values.get("names", {})
    if not isinstance(names, dict) or not set(names.values()) <= set(_ROLES):
        raise InputError(
            f"{where}: names is {names!r}; a table from names of projections to roles "
            f"({', '.join(_ROLES)}) is needed."
        )
    fields: dict[str, Any] = {name: value for name, value in values.items() if name != "names"}
    return ModelType(**fields, names=tuple(sorted(names.items())))
