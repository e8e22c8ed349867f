"""`eval`: errors of runs, and the scores of the models made from them on a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from globe_stream.commands.frontier import require_picture, write_picture
from globe_stream.commands.models import is_model_folder
from globe_stream.commands.scoring import Scoring, compare_models
from globe_stream.commands.session import Document, memory_limit
from globe_stream.config import RuntimeConfig
from globe_stream.engine.progress import ProgressCall, step_bar
from globe_stream.errors import InputError, option
from globe_stream.evaluation.reconstruction import (
    errors_document,
    measured_errors,
    recorded_errors,
    recorded_svd,
    svd_errors,
)


def evaluate(
    paths: Sequence[Path],
    runtime: RuntimeConfig,
    *,
    measure: bool = False,
    scoring: Scoring | None = None,
    picture: Path | None = None,
    silent: bool = False,
) -> Document:
    """Errors of the runs in `paths`, and with `scoring` the scores of the models made from them.

    `paths` may hold folders of models in compressed form, which are only scored. `picture` is a PNG
    or SVG file of the scores against bits a weight.
    """
    memory = memory_limit(runtime, None)
    if runtime.memory is None:
        memory = min(memory, psutil.virtual_memory().available)
    runs = [path for path in paths if not is_model_folder(path)]
    if scoring is None and (not runs or picture is not None):
        raise InputError(f"eval: give {option('text')} to score models on")
    if picture is not None:
        require_picture(picture)
    with step_bar("eval", silent=silent) as progress:
        errors = evaluate_errors(runs, measure=measure, memory=memory, progress=progress)
    document: Document = {"format": 1, "errors": errors}
    if scoring is not None:
        with step_bar("scoring", silent=silent) as progress:
            comparison = compare_models(paths, scoring, memory=memory, progress=progress)
        document["comparison"] = comparison.document()
        if picture is not None:
            write_picture(picture, comparison)
            document["picture"] = str(picture)
    return document


def evaluate_errors(
    runs: Sequence[Path], *, measure: bool, memory: int | None, progress: ProgressCall | None = None
) -> dict[str, Any]:
    """relF of every run by family, layer and expert.

    As recorded with the saved state, and that of the equal-parameter truncated SVD beside it if
    the run recorded one; with `measure` both are also measured anew from the weights (two streamed
    passes a run).
    """
    errors: dict[str, Any] = {}
    for run in runs:
        errors[str(run)] = {"recorded": errors_document(recorded_errors(run))}
        if svd := recorded_svd(run):
            errors[str(run)]["svd_equal_parameters"] = svd
        if measure:
            again = measured_errors(run, memory=memory, progress=progress)
            truncated = svd_errors(run, memory=memory, progress=progress)
            errors[str(run)] |= {
                "measured": errors_document(again),
                "svd_equal_parameters": errors_document(truncated),
            }
    return errors
