"""Recipes: a whole run (synth, seed, train, export, report) as one TOML file.

Every table has the fields of the model it stands for, by the same names as the command line's
options. `run_recipe` does what a recipe says.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from pydantic import Field

from globe_stream.config import (
    ExportConfig,
    Options,
    RuntimeConfig,
    SeedConfig,
    SelectionConfig,
    SyntheticModel,
    TrainConfig,
    load_toml,
)
from globe_stream.errors import InputError
from globe_stream.io.records import JsonObject
from globe_stream.io.system_errors import explained

_TABLES: dict[str, type[Options]] = {
    "synth": SyntheticModel,
    "selection": SelectionConfig,
    "seed": SeedConfig,
    "train": TrainConfig,
    "runtime": RuntimeConfig,
}


class Recipe(Options):
    """What to do, in order; parts that are None or empty are left out."""

    model: str = Field(description="Folder or hub id of the checkpoint.")
    run: Path = Field(strict=False, description="Run directory.")
    report: Path | None = Field(None, strict=False, description="HTML report to write.")
    export: tuple[ExportConfig, ...] = ()
    synth: SyntheticModel | None = None
    selection: SelectionConfig = SelectionConfig()
    seed: SeedConfig = SeedConfig()
    train: TrainConfig | None = None
    runtime: RuntimeConfig = RuntimeConfig()


def load_recipe(path: Path) -> Recipe:
    """Read and check the recipe at `path`; InputError names the file and the key at fault."""
    try:
        with explained(path, "reading the recipe"):
            text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid TOML: it is no UTF-8 text") from error
    return parse_recipe(load_toml(text, str(path)), str(path))


def parse_recipe(values: JsonObject, where: str) -> Recipe:
    """The recipe that `values` (TOML found at `where`) describes."""
    parts = dict(values)
    for name in filter(values.__contains__, _TABLES):
        parts[name] = _table(values, name, where)
    if "export" in values:
        parts["export"] = _exports(values["export"], where)
    return Recipe.from_mapping(parts, where)


def packaged_recipe(name: str) -> Recipe:
    """A recipe of the `pipelines` folder, which a wheel holds inside the package.

    An editable installation has it beside the package instead.
    """
    package = resources.files("globe_stream")
    installed = package / "pipelines" / f"{name}.toml"
    if not installed.is_file():
        return load_recipe(Path(str(package)).parent / "pipelines" / f"{name}.toml")
    where = f"pipelines/{name}.toml"
    return parse_recipe(load_toml(installed.read_text(encoding="utf-8"), where), where)


def _table(values: JsonObject, name: str, where: str) -> Options:
    table = values[name]
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: {name} is no table: head it [{name}]")
    return _TABLES[name].from_mapping(table, f"{where} [{name}]")


def _exports(tables: object, where: str) -> tuple[ExportConfig, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise InputError(f"{where}: export: write each export as a table headed [[export]]")
    return tuple(ExportConfig.from_mapping(table, f"{where} [[export]]") for table in tables)
