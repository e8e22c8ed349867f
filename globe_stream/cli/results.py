"""Commands about results: sweep, eval, report, verify."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from globe_stream.cli import result_text as render
from globe_stream.cli.checkpoint import as_json
from globe_stream.cli.options import options_of, record_from
from globe_stream.cli.output import show
from globe_stream.cli.runs import no_wandb, without_tracker
from globe_stream.config import (
    DtypeName,
    RuntimeConfig,
    SeedConfig,
    SelectionConfig,
    TrainConfig,
    Windows,
)
from globe_stream.config.runtime import NOT_OF_THE_CPU
from globe_stream.errors import GlobeError
from globe_stream.formatting import count_of

memory_only = options_of(RuntimeConfig, skip=NOT_OF_THE_CPU)


@click.command()
@click.argument("model")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="OPTION=A,B,...",
    help="An option of seed or train and the values that it takes, such as bases=30,60; several "
    "make a grid of all combinations.",
)
@click.option(
    "--grid",
    "grid_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The same from a TOML file: a table [grid] with a list for each option, and single "
    "[[points]].",
)
@click.option(
    "--methods",
    metavar="A,B,...",
    help="The same as --set method=A,B (default, where nothing is swept: all methods).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that keeps the runs, sweep.json and the picture; the same command continues "
    "there (default: nothing is kept).",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text to score the trained points on, in bits per byte.",
)
@click.option(
    "--run",
    "path",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Without --out: empty folder for what is written meanwhile (default: a temporary one).",
)
@click.option(
    "--epochs",
    type=int,
    metavar="N",
    help="Train every point for so many passes (default: seed only). [at least 1]",
)
@options_of(
    SelectionConfig,
    SeedConfig,
    TrainConfig,
    RuntimeConfig,
    skip=("method", "epochs"),
)
@no_wandb
@as_json
def sweep(
    model: str,
    sets: tuple[str, ...],
    grid_file: Path | None,
    methods: str | None,
    out: Path | None,
    text: Path | None,
    path: Path | None,
    epochs: int | None,
    no_wandb: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Seed, and with --epochs train, MODEL at every point of a grid of options, and compare.

    What points share is read once: statistics, proxies, Gram matrices, whole warm starts.
    """
    from globe_stream.commands.sweep.command import SweepOptions
    from globe_stream.commands.sweep.command import sweep as sweep_model
    from globe_stream.commands.sweep.grid import grid_of

    training = record_from(TrainConfig, values)
    result = sweep_model(
        model,
        grid_of(sets, grid_file, methods),
        SweepOptions(
            record_from(SelectionConfig, values),
            record_from(SeedConfig, values),
            None if epochs is None else training.changed(epochs=epochs),
            record_from(RuntimeConfig, without_tracker(values, no_wandb)),
        ),
        out=out,
        scratch=path,
        text=text,
    )
    show(result, render.sweep, as_json=as_json)


@click.command("eval")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="Text file to score models on; without it only errors are shown.",
)
@click.option(
    "--models",
    metavar="A,B,...",
    help="Models to score: original, dense, patched, model, svd; rounded to nearest in B bits: "
    "rtn-B, svd-rtn-B, dense-rtn-B; quantised: model-B-A (default: original,dense,svd).",
)
@click.option(
    "--frontier",
    is_flag=True,
    help="Bits per byte against bits a weight: score what the same bits could be spent on "
    "(default of --models: all of it at 2 to 8 bits).",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="PNG or SVG file to draw bits per byte against bits a weight in.",
)
@click.option(
    "--measure",
    is_flag=True,
    help="Measure errors anew from the weights, and those of the truncated SVD.",
)
@options_of(Windows)
@click.option(
    "--dtype",
    type=click.Choice(get_args(DtypeName)),
    default="fp32",
    show_default=True,
    help="Type the models compute in.",
)
@click.option(
    "--offload",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for weights that do not fit in memory (accelerate's disk offload).",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the exports made for scoring here (default: delete them).",
)
@memory_only
@as_json
def evaluate(
    runs: tuple[Path, ...],
    text: Path | None,
    models: str | None,
    frontier: bool,
    picture: Path | None,
    measure: bool,
    dtype: str,
    offload: Path | None,
    work: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Errors of RUNS by family, layer and expert; with --text, bits per byte of the models.

    RUNS may hold exports in the format model; they are scored.
    """
    from globe_stream.commands.evaluate import evaluate as evaluate_runs
    from globe_stream.commands.models import Loading
    from globe_stream.commands.scoring import Scoring
    from globe_stream.commands.variants import FRONTIER, SCORED

    if frontier and text is None:
        raise click.UsageError("--frontier needs --text: bits per byte are those of a text")
    if models and text is None:
        raise click.UsageError("--models needs --text: what is scored on it")
    scoring = None
    if text is not None:
        windows = record_from(Windows, values)
        loading = Loading(dtype=dtype, offload=offload)
        names = _names(models or (FRONTIER if frontier else SCORED))
        scoring = Scoring(text, tuple(names), windows, loading, work, frontier)
    runtime = record_from(RuntimeConfig, values)
    document = evaluate_runs(runs, runtime, measure=measure, scoring=scoring, picture=picture)
    show(document, render.evaluation, as_json=as_json)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="HTML file to write (default, for one run: report.html in it).",
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write an HTML report with pictures of the run at RUNS, or of several side by side."""
    from globe_stream.commands.report import report as write_report

    click.echo(str(write_report(runs, out)))


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@as_json
def verify(path: Path, as_json: bool) -> None:
    """Read the run or export at PATH in full; every checksum, size and missing part."""
    from globe_stream.commands.verify import verify as check
    from globe_stream.commands.wording import worded
    from globe_stream.engine.progress import step_bar

    with step_bar("verify", unit="arrays and files") as progress:
        found = check(path, progress=progress)
    found = replace(found, problems=tuple(map(worded, found.problems)))
    show(found, render.verification, as_json=as_json)
    if not found.ok:
        problems = count_of(len(found.problems), "problem")
        click.echo(f"globe-stream: {path}: {problems} found", err=True)
        click.get_current_context().exit(GlobeError.exit_code)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


COMMANDS = (sweep, evaluate, report, verify)
