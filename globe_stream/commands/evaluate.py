"""`eval`: errors of runs, and the scores of the models made from them on a text."""

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from globe_stream.commands.models import (
    Loading,
    estimate_loading,
    export_variant,
    load_patched,
    load_plain,
    require_variants,
)
from globe_stream.commands.session import Document, memory_limit
from globe_stream.config import RuntimeConfig, Windows
from globe_stream.engine.progress import ProgressCall, step_bar
from globe_stream.errors import InputError
from globe_stream.evaluation.comparison import ModelComparison, Row
from globe_stream.evaluation.perplexity import Score, score
from globe_stream.evaluation.reconstruction import (
    errors_document,
    measured_errors,
    recorded_errors,
    recorded_svd,
    svd_errors,
)
from globe_stream.evaluation.text import read_text, read_windows
from globe_stream.factorization.trained_run import TrainedRun, open_trained_run
from globe_stream.io.files import make_folder
from globe_stream.memory.allocator import return_freed_memory
from globe_stream.memory.model_memory import held_weights


@dataclass(frozen=True)
class Scoring:
    """Which models are scored on which windows of a text file, and how they are loaded.

    `models` are some of original, dense, patched and svd. `work` is a folder for the exports, kept
    and reused; None makes and deletes one.
    """

    text: Path
    models: tuple[str, ...] = ("original", "dense", "svd")
    windows: Windows = field(default_factory=Windows)
    loading: Loading = field(default_factory=Loading)
    work: Path | None = None


def evaluate(
    runs: Sequence[Path],
    runtime: RuntimeConfig,
    *,
    measure: bool = False,
    scoring: Scoring | None = None,
    silent: bool = False,
) -> Document:
    """Errors of `runs`, and with `scoring` the scores of the models made from them."""
    memory = memory_limit(runtime, None)
    with step_bar("eval", silent=silent) as progress:
        errors = evaluate_errors(runs, measure=measure, memory=memory, progress=progress)
    document: Document = {"format": 1, "errors": errors}
    if scoring is not None:
        with step_bar("scoring", silent=silent) as progress:
            comparison = compare_models(runs, scoring, memory=memory, progress=progress)
        document["comparison"] = comparison.document()
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


def compare_models(
    runs: Sequence[Path],
    scoring: Scoring,
    *,
    memory: int | None = None,
    progress: ProgressCall | None = None,
) -> ModelComparison:
    """Score the original of `runs` and what every run makes of it.

    `runs` are of one checkpoint; their exports are made as needed. `memory` is the peak resident
    bytes of the process; batches of windows are chosen to fit too. Raises InputError when runs are
    of different checkpoints, when a text or model cannot be used, or when a model does not fit in
    `memory`; all of that before any model is loaded.
    """
    require_variants(scoring.models)
    read_text(scoring.text)
    return_freed_memory()
    origin = _common_origin(runs)
    loading = _checked(runs, scoring, memory)
    with _workspace(scoring.work) as folder:
        job = _Job(scoring, loading, origin, folder, memory)
        made = [
            job.export(number, run, kind, progress)
            for number, run in enumerate(runs)
            for kind in scoring.models
            if kind != "original"
        ]
        rows = [job.original(progress)] if "original" in scoring.models else []
        rows += [job.row(one, progress) for one in made]
    return ModelComparison(str(scoring.text), scoring.windows, loading.dtype, tuple(rows))


def _checked(runs: Sequence[Path], scoring: Scoring, memory: int | None) -> Loading:
    """How to load within `memory`, once text, runs and sizes are known to be usable."""
    trained = not {"dense", "patched"}.isdisjoint(scoring.models)
    with ExitStack() as opened:
        sources = [
            opened.enter_context(open_trained_run(run, trained=trained))
            for run in dict.fromkeys(runs)
        ]
        index, loading = sources[0].index, scoring.loading
        patching = sources if "patched" in scoring.models else []
        needs = estimate_loading(index, patching, loading, scoring.windows.length)
        read_windows(scoring.text, scoring.windows, needs.vocabulary, index.root)
        offload = loading.offload is not None
        held = held_weights(needs, memory, offload=offload)
        return loading if held is None else replace(loading, held=held)


@dataclass(frozen=True)
class _Job:
    scoring: Scoring
    loading: Loading
    origin: Path
    folder: Path
    memory: int | None

    def export(self, number: int, run: Path, kind: str, progress: ProgressCall | None) -> "_Made":
        """Make what one model is loaded from."""
        out = self.folder / f"{number}-{run.name}-{kind}"
        result = export_variant(kind, run, out, self.memory, progress)
        return _Made(run, kind, out, result.relative_errors)

    def original(self, progress: ProgressCall | None) -> Row:
        """Load and score the original."""
        scored = self._score(load_plain(self.origin, "original", self.loading), progress)
        return Row("", "original", None, None, None, {}, scored)

    def row(self, made: "_Made", progress: ProgressCall | None) -> Row:
        """Load and score one model of a run."""
        gc.collect()
        if made.kind == "patched":
            model = load_patched(self.origin, made.out, made.out.name, self.loading)
        else:
            model = load_plain(made.out, made.out.name, self.loading)
        scored = self._score(model, progress)
        with open_trained_run(made.run, trained=False) as source:
            first, kept = source.groups[0].group, _kept(source)
        return Row(
            made.run.name, made.kind, first.bases, first.rank, kept, made.relative_errors, scored
        )

    def _score(self, model: Any, progress: ProgressCall | None) -> Score:
        text, windows = self.scoring.text, self.scoring.windows
        return score(model, text, self.origin, windows, memory=self.memory, progress=progress)


@dataclass(frozen=True)
class _Made:
    """An export to be scored."""

    run: Path
    kind: str
    out: Path
    relative_errors: dict[str, float]


def _kept(source: TrainedRun) -> float:
    """Parameters kept over parameters replaced, all groups together."""
    whole = kept = 0.0
    for fitted in source.groups:
        sizes = fitted.group.sizes
        elements = sizes.experts * sizes.p * sizes.d
        whole += elements
        kept += elements * sizes.parameter_ratio(len(fitted.codes.values))
    return kept / whole


def _common_origin(runs: Sequence[Path]) -> Path:
    """The folder of the checkpoint that all `runs` were made from."""
    if not runs:
        raise InputError("eval: give at least one run directory")
    roots = {}
    for run in runs:
        with open_trained_run(run, trained=False) as source:
            roots[run] = source.index.root
            source.index.fetch_files(source.index.files)
    first = roots[runs[0]]
    for run, root in roots.items():
        if root != first:
            raise InputError(
                f"{run}: made from {root}, but {runs[0]} from {first}. "
                "Compare runs of one checkpoint"
            )
    return first


@contextmanager
def _workspace(work: Path | None) -> Iterator[Path]:
    if work is not None:
        make_folder(work)
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="globe-eval-") as folder:
        yield Path(folder)
