"""Recipes: a whole run (synth, seed, train, export, report) as one TOML file.

Every table has the fields of the record it stands for, by the same names as the command line's
options. `carry_out` does what a recipe says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from globe_stream.config import (
    RuntimeConfig,
    SeedConfig,
    SelectionConfig,
    TrainConfig,
    load_toml,
    plain_value,
)
from globe_stream.errors import InputError
from globe_stream.synthetic.checkpoints import SyntheticModel

_TABLES = ("synth", "selection", "seed", "train", "runtime")
_KEYS = ("model", "run", "report", "export")
_DTYPES = ("bf16", "fp16", "fp32")
_EXPORT_KEYS = ("format", "out", "dtype")
_SYNTH_KEYS = {
    "layers": int,
    "experts": int,
    "hidden": int,
    "intermediate": int,
    "planted_bases": int,
    "planted_rank": int,
    "noise": float,
    "dtype": str,
    "seed": int,
}


@dataclass(frozen=True)
class Export:
    """One export of a recipe."""

    format: str
    out: Path
    dtype: str | None = None


@dataclass(frozen=True)
class Recipe:
    """What to do, in order; parts that are None or empty are left out."""

    model: str
    run: Path
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    seed: SeedConfig = field(default_factory=SeedConfig)
    train: TrainConfig | None = None
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    synth: SyntheticModel | None = None
    exports: tuple[Export, ...] = ()
    report: Path | None = None


def load_recipe(path: Path) -> Recipe:
    """Read and check the recipe at `path`; InputError names the file and the key at fault."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Give a recipe file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid TOML: it is no UTF-8 text") from error
    return parse_recipe(load_toml(text, str(path)), str(path))


def parse_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that `values` (TOML found at `where`) describes."""
    _refuse_unknown(values, (*_KEYS, *_TABLES), where)
    for key in ("model", "run"):
        if not isinstance(values.get(key), str):
            raise InputError(f"{where}: {key} is missing: give a path as text")
    table = {name: _table(values, name, where) for name in _TABLES}
    exports, report = values.get("export", []), values.get("report")
    if not isinstance(exports, list):
        raise InputError(f"{where}: export: write each export as a table headed [[export]]")
    if not isinstance(report, str | None):
        raise InputError(f"{where}: report = {report!r}: give a path as text")
    train = TrainConfig.from_mapping(table["train"], f"{where} [train]")
    return Recipe(
        model=values["model"],
        run=Path(values["run"]),
        selection=SelectionConfig.from_mapping(table["selection"], f"{where} [selection]"),
        seed=SeedConfig.from_mapping(table["seed"], f"{where} [seed]"),
        train=train if "train" in values else None,
        runtime=RuntimeConfig.from_mapping(table["runtime"], f"{where} [runtime]"),
        synth=_synth(table["synth"], f"{where} [synth]") if "synth" in values else None,
        exports=tuple(_export(item, f"{where} [[export]]") for item in exports),
        report=None if report is None else Path(report),
    )


def packaged_recipe(name: str) -> Recipe:
    """A recipe of the `pipelines` folder, from the installed package or the source tree."""
    installed = Path(str(resources.files("globe_stream"))) / "pipelines" / f"{name}.toml"
    source = Path(__file__).parents[2] / "pipelines" / f"{name}.toml"
    return load_recipe(installed if installed.exists() else source)


def _export(values: Any, where: str) -> Export:
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: write each export as a table headed [[export]]")
    _refuse_unknown(values, _EXPORT_KEYS, where)
    if values.get("format") not in ("factors", "dense") or not isinstance(values.get("out"), str):
        raise InputError(f"{where}: give format (factors or dense) and out (a folder)")
    if values.get("dtype") not in (None, *_DTYPES):
        raise InputError(
            f"{where}: dtype {values['dtype']!r} is not known: use one of {', '.join(_DTYPES)}"
        )
    return Export(values["format"], Path(values["out"]), values.get("dtype"))


def _table(values: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    table = values.get(name, {})
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: {name} is no table: head it [{name}]")
    return table


def _synth(values: Mapping[str, Any], where: str) -> SyntheticModel:
    _refuse_unknown(values, tuple(_SYNTH_KEYS), where)
    given = {
        name: plain_value(value, _SYNTH_KEYS[name], f"{where}: {name}")
        for name, value in values.items()
    }
    missing = [
        name for name in ("layers", "experts", "hidden", "intermediate") if name not in values
    ]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing")
    try:
        return SyntheticModel(**given)
    except InputError as error:
        raise error.at(where) from error


def _refuse_unknown(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
