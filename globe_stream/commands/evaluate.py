"""`eval`: errors of runs, and the scores of the models made from them on a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from globe_stream.commands.frontier import require_picture, write_picture
from globe_stream.commands.models import is_model_folder
from globe_stream.commands.scoring import Scoring, compare_models
from globe_stream.commands.session import memory_limit
from globe_stream.config import RuntimeConfig
from globe_stream.engine.progress import ProgressCall, step_bar
from globe_stream.errors import InputError, option
from globe_stream.evaluation.comparison import ModelComparison
from globe_stream.evaluation.reconstruction import (
    FamilyError,
    FamilyErrors,
    family_errors,
    measured_errors,
    recorded_errors,
    recorded_svd,
    svd_errors,
)
from globe_stream.io.records import Compact


@dataclass(frozen=True)
class RunErrors(Compact):
    """Errors of a run by family: as recorded, as measured anew, and those of the SVD of equal size.

    None is what is not known: what was not measured, an SVD that the run did not record.
    """

    recorded: dict[str, FamilyErrors]
    svd_equal_parameters: Mapping[str, FamilyErrors | FamilyError] | None = None
    measured: dict[str, FamilyErrors] | None = None


@dataclass(frozen=True)
class Evaluation(Compact):
    """Errors by run, the scores of models on a text if there was one, and their picture's file."""

    format: int
    errors: dict[str, RunErrors]
    comparison: ModelComparison | None = None
    picture: str | None = None


def evaluate(
    paths: Sequence[Path],
    runtime: RuntimeConfig,
    *,
    measure: bool = False,
    scoring: Scoring | None = None,
    picture: Path | None = None,
    silent: bool = False,
) -> Evaluation:
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
    if scoring is None:
        return Evaluation(1, errors)
    with step_bar("scoring", unit="steps", silent=silent) as progress:
        comparison = compare_models(paths, scoring, memory=memory, progress=progress)
    if picture is not None:
        write_picture(picture, comparison)
    return Evaluation(1, errors, comparison, None if picture is None else str(picture))


def evaluate_errors(
    runs: Sequence[Path], *, measure: bool, memory: int | None, progress: ProgressCall | None = None
) -> dict[str, RunErrors]:
    """relF of every run by family, layer and expert.

    As recorded with the saved state, and that of the equal-parameter truncated SVD beside it if
    the run recorded one; with `measure` both are also measured anew from the weights (two streamed
    passes a run).
    """
    errors: dict[str, RunErrors] = {}
    for run in runs:
        found = RunErrors(family_errors(recorded_errors(run)), recorded_svd(run) or None)
        if measure:
            again = measured_errors(run, memory=memory, progress=progress)
            truncated = svd_errors(run, memory=memory, progress=progress)
            found = replace(
                found, svd_equal_parameters=family_errors(truncated), measured=family_errors(again)
            )
        errors[str(run)] = found
    return errors
