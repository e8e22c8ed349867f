"""Commands about runs: seed, train, status."""

import json
from pathlib import Path
from typing import Any

import click

from globe_stream.cli import render
from globe_stream.cli.checkpoint import as_json
from globe_stream.cli.options import options_of, record_from
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig

run_argument = click.argument("run", type=click.Path(path_type=Path))
fresh = click.option("--fresh", is_flag=True, help="Start over instead of continuing.")
no_wandb = click.option("--no-wandb", is_flag=True, help="Do not log to wandb (the default).")


@click.command()
@click.argument("model")
@click.option("--run", "path", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Run directory, made if it is not there.")
@options_of(SelectionConfig, SeedConfig, RuntimeConfig)
@no_wandb
@fresh
@as_json
def seed(
    model: str, path: Path, fresh: bool, no_wandb: bool, as_json: bool, **values: Any
) -> None:
    """Warm start: learn bank and codes of MODEL from proxies. The same command continues."""
    from globe_stream import api

    document = api.seed(
        model, path, record_from(SelectionConfig, values), record_from(SeedConfig, values),
        record_from(RuntimeConfig, _without_tracker(values, no_wandb)), fresh=fresh,
    )
    click.echo(json.dumps(document) if as_json else render.status(document))


@click.command()
@run_argument
@options_of(TrainConfig, RuntimeConfig)
@no_wandb
@fresh
@as_json
def train(run: Path, fresh: bool, no_wandb: bool, as_json: bool, **values: Any) -> None:
    """Alternating minimisation of the seeded run at RUN. The same command continues."""
    from globe_stream import api

    document = api.train(
        run, record_from(TrainConfig, values),
        record_from(RuntimeConfig, _without_tracker(values, no_wandb)), fresh=fresh,
    )
    click.echo(json.dumps(document) if as_json else render.status(document))


@click.command()
@run_argument
@as_json
def status(run: Path, as_json: bool) -> None:
    """Show where the run at RUN stands; changes nothing."""
    from globe_stream import api

    document = api.status(run)
    click.echo(json.dumps(document) if as_json else render.status(document))


def _without_tracker(values: dict[str, Any], no_wandb: bool) -> dict[str, Any]:
    return {**values, "wandb_project": None} if no_wandb else values


COMMANDS = (seed, train, status)
