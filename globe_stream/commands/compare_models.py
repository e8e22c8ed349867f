"""One table: bits per byte of the original, of runs of several sizes, and of their SVDs."""

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from globe_stream.config import Windows
from globe_stream.errors import InputError
from globe_stream.evaluation.model_memory import estimate_model, within_memory
from globe_stream.evaluation.models import (
    Loading,
    export_variant,
    load_patched,
    load_plain,
    require_variants,
)
from globe_stream.evaluation.perplexity import Score, score
from globe_stream.evaluation.text import read_text, read_windows
from globe_stream.export.result import ProgressCall
from globe_stream.factorization.trained_run import TrainedRun, open_trained_run
from globe_stream.formatting import format_bytes
from globe_stream.io.files import make_folder
from globe_stream.memory.allocator import return_freed_memory


@dataclass(frozen=True)
class Row:
    """One model of the comparison; `run` is empty for the original.

    `parameters_kept` is of the families replaced; errors are relative Frobenius, by family.
    """

    run: str
    model: str
    bases: int | None
    rank: int | None
    parameters_kept: float | None
    relative_errors: dict[str, float]
    score: Score


@dataclass(frozen=True)
class ModelComparison:
    """The rows, the original first."""

    text: str
    windows: Windows
    dtype: str
    rows: tuple[Row, ...]

    def document(self) -> dict[str, Any]:
        """For `eval --json`."""
        return {"format": 1, **asdict(self), "windows": self.windows.model_dump()}

    def markdown(self) -> str:
        """The table for people."""
        lines = [
            "| run | model | m x r | parameters kept | relF | bits per byte | perplexity | "
            "tokens/s | peak memory |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        return "\n".join([*lines, *map(_line, self.rows), "", self._scored()]) + "\n"

    def _scored(self) -> str:
        """How much of the text was scored."""
        found, asked = self.rows[0].score.windows, self.windows.count
        told = f"Scored on {found} windows of {self.windows.length} tokens."
        short = f" The text is too short for the {asked} that were asked for."
        return told + (short if found < asked else "")


def _line(row: Row) -> str:
    size = f"{row.bases} x {row.rank}" if row.bases else ""
    kept = f"{row.parameters_kept:.1%}" if row.parameters_kept else ""
    errors = ", ".join(f"{name} {value:.4f}" for name, value in row.relative_errors.items())
    one = row.score
    return (
        f"| {row.run} | {_NAMES[row.model]} | {size} | {kept} | {errors} | "
        f"{one.bits_per_byte:.4f} | {one.perplexity:.4f} | {one.tokens_per_second:.0f} | "
        f"{format_bytes(one.peak_memory_bytes)} |"
    )


_NAMES = {
    "original": "original",
    "dense": "bank, dense export",
    "patched": "bank, patched",
    "svd": "truncated SVD, equal parameters",
}


def compare_models(
    runs: Sequence[Path],
    text: Path,
    *,
    models: tuple[str, ...] = ("original", "dense", "svd"),
    windows: Windows | None = None,
    loading: Loading | None = None,
    work: Path | None = None,
    memory: int | None = None,
    progress: ProgressCall | None = None,
) -> ModelComparison:
    """Score the original of `runs` and what every run makes of it on the text file `text`.

    Args:
        runs: run directories, all of one checkpoint.
        models: which of original, dense, patched, svd; the runs' exports are made as needed.
        work: folder for the exports, kept and reused; None makes and deletes one.
        memory: peak resident bytes of the process; batches of windows are chosen to fit too.

    Raises InputError when runs are of different checkpoints, when a text or model cannot be used,
    or when a model does not fit in `memory`; all of that before any model is loaded.
    """
    require_variants(models)
    read_text(text)
    return_freed_memory()
    loading, chosen = loading or Loading(), windows or Windows()
    origin = _common_origin(runs)
    loading = _checked(runs, models, text, chosen, loading, memory)
    with _workspace(work) as folder:
        job = _Job(text, chosen, loading, origin, folder, memory)
        made = [
            job.export(number, run, kind, progress)
            for number, run in enumerate(runs)
            for kind in models
            if kind != "original"
        ]
        rows = [job.original(progress)] if "original" in models else []
        rows += [job.row(one, progress) for one in made]
    return ModelComparison(str(text), chosen, loading.dtype, tuple(rows))


def _checked(
    runs: Sequence[Path],
    models: tuple[str, ...],
    text: Path,
    windows: Windows,
    loading: Loading,
    memory: int | None,
) -> Loading:
    """How to load within `memory`, once text, runs and sizes are known to be usable."""
    trained = not {"dense", "patched"}.isdisjoint(models)
    with ExitStack() as opened:
        sources = [
            opened.enter_context(open_trained_run(run, trained=trained))
            for run in dict.fromkeys(runs)
        ]
        index = sources[0].index
        patching = sources if "patched" in models else []
        estimate_bytes = estimate_model(index, patching, loading, windows.length)
        read_windows(text, windows, estimate_bytes.vocabulary, index.root)
        return within_memory(estimate_bytes, loading, memory)


@dataclass(frozen=True)
class _Job:
    text: Path
    windows: Windows
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
        found = self._score(load_plain(self.origin, "original", self.loading), progress)
        return Row("", "original", None, None, None, {}, found)

    def row(self, made: "_Made", progress: ProgressCall | None) -> Row:
        """Load and score one model of a run."""
        gc.collect()
        if made.kind == "patched":
            model = load_patched(self.origin, made.out, made.out.name, self.loading)
        else:
            model = load_plain(made.out, made.out.name, self.loading)
        found = self._score(model, progress)
        with open_trained_run(made.run, trained=False) as source:
            first, kept = source.groups[0].group, _kept(source)
        return Row(
            made.run.name, made.kind, first.bases, first.rank, kept, made.relative_errors, found
        )

    def _score(self, model: Any, progress: ProgressCall | None) -> Score:
        return score(
            model, self.text, self.origin, self.windows, memory=self.memory, progress=progress
        )


@dataclass(frozen=True)
class _Made:
    """An export to be scored."""

    run: Path
    kind: str
    out: Path
    relative_errors: dict[str, float]


def _kept(source: TrainedRun) -> float:
    """Parameters kept over parameters replaced, all units together."""
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
    found = {}
    for run in runs:
        with open_trained_run(run, trained=False) as source:
            found[run] = source.index.root
            source.index.fetch_files(source.index.files)
    first = found[runs[0]]
    for run, root in found.items():
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
