"""`globe-stream eval`: errors of runs, and what their models are worth on a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from globe_stream.commands.compare_models import ModelComparison, compare_models
from globe_stream.config import Windows
from globe_stream.evaluation.models import Loading
from globe_stream.evaluation.reconstruction import (
    errors_document,
    measured_errors,
    recorded_errors,
    recorded_svd,
    svd_errors,
)
from globe_stream.export.result import ProgressCall


def evaluate_errors(
    runs: Sequence[Path], *, measure: bool, memory: int | None, progress: ProgressCall | None = None
) -> dict[str, Any]:
    """relF of every run by family, layer and expert.

    As recorded with the saved state, and that of the equal-parameter truncated SVD beside it if
    the run recorded one; with `measure` both are also measured anew from the weights (two streamed
    passes a run).
    """
    found: dict[str, Any] = {}
    for run in runs:
        found[str(run)] = {"recorded": errors_document(recorded_errors(run))}
        if svd := recorded_svd(run):
            found[str(run)]["svd_equal_parameters"] = svd
        if measure:
            again = measured_errors(run, memory=memory, progress=progress)
            truncated = svd_errors(run, memory=memory, progress=progress)
            found[str(run)] |= {
                "measured": errors_document(again),
                "svd_equal_parameters": errors_document(truncated),
            }
    return found


def evaluate_text(
    runs: Sequence[Path],
    text: Path,
    models: Sequence[str],
    windows: Windows,
    *,
    dtype: str,
    offload: Path | None,
    work: Path | None,
    memory: int | None,
    progress: ProgressCall | None = None,
) -> ModelComparison:
    """Score the original and what every run makes of it on `text`; see `compare`."""
    loading = Loading(dtype=dtype, offload=offload)
    return compare_models(
        runs,
        text,
        models=tuple(models),
        windows=windows,
        loading=loading,
        work=work,
        memory=memory,
        progress=progress,
    )
