"""Commands about checkpoints: inspect, plan, synth."""

from pathlib import Path
from typing import Any

import click

from globe_stream.cli import checkpoint_text as render
from globe_stream.cli.examination import examination
from globe_stream.cli.options import options_of, record_from
from globe_stream.cli.output import show
from globe_stream.config import (
    RuntimeConfig,
    SeedConfig,
    SelectionConfig,
    SyntheticModel,
    TrainConfig,
)
from globe_stream.config.runtime import OF_RUNS

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


whole_run = options_of(
    SelectionConfig,
    SeedConfig,
    TrainConfig,
    RuntimeConfig,
    skip=("precision", "checkpoint_every", *OF_RUNS),
)
"""Options of all that decides what a run takes."""


@click.command()
@click.argument("model")
@click.option("--revision", metavar="REVISION", help="Branch, tag or commit of a hub model.")
@click.option("--include-mtp", is_flag=True, help="Also list multi-token-prediction layers.")
@click.option("--layout", metavar="FILE", help="Rule for the names of the experts (TOML or JSON).")
@as_json
def inspect(
    model: str, revision: str | None, include_mtp: bool, layout: str | None, as_json: bool
) -> None:
    """Show what MODEL (a folder or a hub id) holds; reads headers only."""
    from globe_stream.checkpoint.index import open_index, require_revisions

    require_revisions(model, revision)
    rule = SelectionConfig(layout=layout).rule
    document = open_index(model, revision, include_mtp, rule).summary()
    show(document, render.inventory, as_json=as_json)


@click.command()
@click.argument("model")
@whole_run
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Price the memory of each of so many processes under torchrun.",
)
@as_json
def plan(model: str, processes: int, as_json: bool, **values: Any) -> None:
    """Price a run on MODEL before it starts: parameters, passes, memory, disk."""
    from globe_stream.commands.plan import plan as plan_run

    document = plan_run(
        model,
        record_from(SelectionConfig, values),
        record_from(SeedConfig, values),
        record_from(TrainConfig, values),
        record_from(RuntimeConfig, values),
        processes,
    )
    show(document, render.estimate, as_json=as_json)


@click.command()
@click.argument("model", required=False)
@whole_run
@as_json
def doctor(model: str | None, as_json: bool, **values: Any) -> None:
    """Show what this machine can do, and what a run on MODEL would take here.

    Measures for a few seconds; the disk is that of the current folder. Its --json is what a report
    of a fault needs.
    """
    from globe_stream.commands.doctor import doctor as examine

    document = examine(
        model,
        record_from(SelectionConfig, values),
        record_from(SeedConfig, values),
        record_from(TrainConfig, values),
        record_from(RuntimeConfig, values),
        Path.cwd(),
    )
    show(document, examination, as_json=as_json)


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@options_of(SyntheticModel)
@as_json
def synth(out: Path, as_json: bool, **values: Any) -> None:
    """Write an offline MoE checkpoint in the qwen2_moe layout, in bounded memory.

    Up and gate matrices of the experts alone: what seed and train take, and no model to run.
    """
    from globe_stream.engine.progress import Progress
    from globe_stream.synthetic.checkpoints import write_synthetic

    document = write_synthetic(out, record_from(SyntheticModel, values), progress=Progress())
    show(document, render.synthetic, as_json=as_json)


COMMANDS = (inspect, plan, doctor, synth)
