"""TOML text to plain values and back."""

import tomllib
from collections.abc import Mapping

import tomli_w

from globe_stream.errors import InputError
from globe_stream.io.records import JsonObject


def to_toml(sections: Mapping[str, JsonObject]) -> str:
    """Tables of plain values as TOML, leaving out None, which TOML cannot say."""
    kept = {
        name: {k: v for k, v in table.items() if v is not None} for name, table in sections.items()
    }
    text: str = tomli_w.dumps(kept)
    return text


def load_toml(text: str, where: str) -> dict[str, object]:
    """Parse TOML; a mistake is an InputError naming `where`."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not valid TOML: {error}") from error
