"""Commands about runs: seed, train, status."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from globe_stream.cli import run_text as render
from globe_stream.cli.checkpoint import as_json
from globe_stream.cli.options import options_of, record_from
from globe_stream.cli.output import show
from globe_stream.config import (
    ExportConfig,
    RuntimeConfig,
    SeedConfig,
    SelectionConfig,
    TrainConfig,
)
from globe_stream.config.runtime import NOT_OF_THE_CPU
from globe_stream.engine.distributed import speaks

run_argument = click.argument("run", type=click.Path(path_type=Path))
fresh = click.option("--fresh", is_flag=True, help="Start over instead of continuing.")
no_wandb = click.option("--no-wandb", is_flag=True, help="Do not log to wandb (the default).")


@click.command()
@click.argument("model")
@click.option(
    "--run",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run directory, made if it is not there.",
)
@options_of(SelectionConfig, SeedConfig, RuntimeConfig)
@no_wandb
@fresh
@as_json
def seed(model: str, path: Path, fresh: bool, no_wandb: bool, as_json: bool, **values: Any) -> None:
    """Warm start: learn bank and codes of MODEL from proxies. The same command continues."""
    from globe_stream.commands.seed import seed as seed_run

    document = seed_run(
        model,
        path,
        record_from(SelectionConfig, values),
        record_from(SeedConfig, values),
        record_from(RuntimeConfig, without_tracker(values, no_wandb)),
        fresh=fresh,
    )
    if speaks():
        show(document, render.status, as_json=as_json)


@click.command()
@run_argument
@options_of(TrainConfig, RuntimeConfig)
@no_wandb
@fresh
@as_json
def train(run: Path, fresh: bool, no_wandb: bool, as_json: bool, **values: Any) -> None:
    """Alternating minimisation of the seeded run at RUN. The same command continues."""
    from globe_stream.commands.train import train as train_run

    document = train_run(
        run,
        record_from(TrainConfig, values),
        record_from(RuntimeConfig, without_tracker(values, no_wandb)),
        fresh=fresh,
    )
    if speaks():
        show(document, render.status, as_json=as_json)


@click.command()
@run_argument
@as_json
def status(run: Path, as_json: bool) -> None:
    """Show where the run at RUN stands; changes nothing."""
    from globe_stream.commands.status import status as status_of

    document = status_of(run)
    show(document, render.status, as_json=as_json)


@click.command()
@run_argument
@options_of(ExportConfig)
@click.option("--model", help="Where the checkpoint is now, if it moved since it was seeded.")
@click.option("--push-to-hub", metavar="OWNER/NAME", help="Upload the finished export.")
@options_of(RuntimeConfig, skip=NOT_OF_THE_CPU)
@as_json
def export(
    run: Path,
    model: str | None,
    push_to_hub: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Write the trained run at RUN to a folder. The same command continues."""
    from globe_stream.commands.export import export as export_run

    document = export_run(
        run,
        record_from(ExportConfig, values),
        model=model,
        command=_command_line(),
        runtime=record_from(RuntimeConfig, values),
        push_to_hub=push_to_hub,
    )
    show(document, render.export, as_json=as_json)


@click.command("run")
@click.argument("recipe", type=click.Path(path_type=Path))
@as_json
def run_recipe(recipe: Path, as_json: bool) -> None:
    """Carry out RECIPE (TOML): seed, train, export. Continues where it stopped."""
    from globe_stream.commands.recipe import load_recipe
    from globe_stream.commands.run_recipe import run_recipe

    document = run_recipe(load_recipe(recipe), command=_command_line())
    show(document, render.finished, as_json=as_json)


@click.command()
@as_json
def demo(as_json: bool) -> None:
    """The whole job on a small synthetic checkpoint, offline, into cache/demo."""
    from globe_stream.commands.recipe import packaged_recipe
    from globe_stream.commands.run_recipe import run_recipe

    document = run_recipe(packaged_recipe("demo"), command=_command_line())
    show(document, render.finished, as_json=as_json)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@as_json
def merge(out: Path, runs: tuple[Path, ...], as_json: bool) -> None:
    """Join RUN..., of other layers or families of one model, into the run directory OUT."""
    from globe_stream.commands.merge import merge as merge_runs

    document = merge_runs(out, runs)
    show(document, render.status, as_json=as_json)


def _command_line() -> str:
    """The command as it was given, for model cards."""
    return shlex.join(["globe-stream", *sys.argv[1:]])


def without_tracker(values: Mapping[str, object], no_wandb: bool) -> dict[str, object]:
    """`values` of a command, without the project of a tracker that `no_wandb` turns off."""
    return {**values, "wandb_project": None} if no_wandb else dict(values)


COMMANDS = (seed, train, status, merge, export, run_recipe, demo)
