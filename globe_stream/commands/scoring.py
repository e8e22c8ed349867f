"""Models made from runs, and folders of models in compressed form, scored one after the other.

Each is made, loaded, scored and, unless its folder is kept, deleted before the next is made.
"""

import gc
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from globe_stream.checkpoint.experts import key_of
from globe_stream.commands.models import (
    Loading,
    estimate_folder,
    estimate_loading,
    folder_bits,
    folder_errors,
    is_model_folder,
    load_patched,
    load_plain,
)
from globe_stream.commands.variants import Variant, parse_variants
from globe_stream.config import Windows
from globe_stream.engine.progress import ProgressCall
from globe_stream.errors import InputError, option
from globe_stream.evaluation.comparison import ModelComparison, Row
from globe_stream.evaluation.perplexity import Score, score
from globe_stream.evaluation.text import read_text, read_windows
from globe_stream.export.baseline import export_rounded, export_svd
from globe_stream.export.dense import export_dense
from globe_stream.export.factors import export_factors
from globe_stream.export.model import export_model
from globe_stream.export.result import ExportResult
from globe_stream.factorization.trained_run import TrainedRun, open_trained_run
from globe_stream.io.files import make_folder
from globe_stream.memory.allocator import return_freed_memory
from globe_stream.memory.model_memory import ModelMemory, held_weights

_EXPORTS: dict[str, Callable[..., ExportResult]] = {
    "dense": export_dense,
    "patched": export_factors,
    "model": export_model,
    "svd": export_svd,
    "svd-rtn": export_svd,
    "rtn": export_rounded,
    "dense-rtn": export_rounded,
}


@dataclass(frozen=True)
class Scoring:
    """Which models are scored on which windows of a text file, and how they are loaded.

    `models` are names of variants. `work` is a folder for the exports, kept and reused; None makes
    and deletes one. With `frontier` the runs must replace the same experts.
    """

    text: Path
    models: tuple[str, ...] = ("original", "dense", "svd")
    windows: Windows = field(default_factory=Windows)
    loading: Loading = field(default_factory=Loading)
    work: Path | None = None
    frontier: bool = False


def compare_models(
    paths: Sequence[Path],
    scoring: Scoring,
    *,
    memory: int | None = None,
    progress: ProgressCall | None = None,
) -> ModelComparison:
    """Score the original of the runs in `paths`, what every run makes of it, and model folders.

    Runs are of one checkpoint; their exports are made as needed. `memory` is the peak resident
    bytes of the process; batches of windows are chosen to fit too. Raises InputError when runs are
    of different checkpoints, when a text or model cannot be used, or when a model does not fit in
    `memory`; all of that before any model is loaded.
    """
    variants = parse_variants(scoring.models)
    read_text(scoring.text)
    return_freed_memory()
    folders = [path for path in paths if is_model_folder(path)]
    runs = [path for path in paths if path not in folders]
    origin = _common_origin(runs, same_experts=scoring.frontier) if runs else folders[0]
    loading = _checked(runs, folders, variants, scoring, memory)
    with _workspace(scoring.work) as work:
        job = _Job(scoring, loading, origin, work, memory, progress)
        rows = list(job.rows(runs, variants))
        rows += [job.folder(folder) for folder in folders]
    return ModelComparison(
        text=str(scoring.text), windows=scoring.windows, dtype=loading.dtype, rows=tuple(rows)
    )


def _checked(
    runs: Sequence[Path],
    folders: Sequence[Path],
    variants: Sequence[Variant],
    scoring: Scoring,
    memory: int | None,
) -> Loading:
    """How to load within `memory`, once text, runs and sizes are known to be usable."""
    loading, length = scoring.loading, scoring.windows.length
    needs: list[ModelMemory] = []
    for folder in folders:
        needs.append(estimate_folder(folder, loading, length))
        read_windows(scoring.text, scoring.windows, needs[-1].vocabulary, folder)
    trained = any(variant.needs_training for variant in variants)
    with ExitStack() as opened:
        sources = [
            opened.enter_context(open_trained_run(run, trained=trained))
            for run in dict.fromkeys(runs)
        ]
        if sources:
            index = sources[0].index
            patching = sources if any(one.kind == "patched" for one in variants) else []
            needs.append(estimate_loading(index, patching, loading, length))
            read_windows(scoring.text, scoring.windows, needs[-1].vocabulary, index.root)
    largest = max(needs, key=lambda one: one.total)
    held = held_weights(largest, memory, offload=loading.offload is not None)
    return loading if held is None else replace(loading, held=held)


@dataclass(frozen=True)
class _Job:
    scoring: Scoring
    loading: Loading
    origin: Path
    work: Path
    memory: int | None
    progress: ProgressCall | None

    def rows(self, runs: Sequence[Path], variants: Sequence[Variant]) -> Iterator[Row]:
        """What does not depend on the run once, then the variants of every run."""
        for variant in variants if runs else ():
            if not variant.of_run:
                yield self._row(0, runs[0], variant)
        for number, run in enumerate(runs):
            for variant in variants:
                if variant.of_run:
                    yield self._row(number, run, variant)

    def folder(self, folder: Path) -> Row:
        """Load and score the folder of a model in compressed form."""
        scored = self._score(load_plain(folder, folder.name, self.loading), folder)
        bits, errors = folder_bits(folder), folder_errors(folder)
        return _Description(folder.name, "model", bits=bits, errors=errors).row(scored)

    def _row(self, number: int, run: Path, variant: Variant) -> Row:
        """Make, load and score one model."""
        gc.collect()
        described = _description(run, variant)
        if variant.kind == "original":
            model = load_plain(self.origin, "original", self.loading)
            return described.row(self._score(model, self.origin))
        out = self.work / f"{number}-{run.name}-{variant.name}"
        made = self._export(variant, run, out)
        scored = self._score(self._load(variant, out), self.origin)
        bits = folder_bits(out) if described.bits is None else described.bits
        if self.scoring.work is None:
            shutil.rmtree(out)
        return replace(described, bits=bits, errors=made.relative_errors).row(scored)

    def _export(self, variant: Variant, run: Path, out: Path) -> ExportResult:
        """Make in `out` what `variant` is loaded from, unless it is there already."""
        options: dict[str, object] = {}
        if variant.bits:
            options["bits"] = variant.bits if variant.kind == "model" else variant.bits[0]
        if variant.kind == "dense-rtn":
            options["rebuilt"] = True
        export = _EXPORTS[variant.kind]
        return export(run, out, memory=self.memory, progress=self.progress, **options)

    def _load(self, variant: Variant, out: Path) -> Any:
        if variant.kind == "patched":
            return load_patched(self.origin, out, out.name, self.loading)
        return load_plain(out, out.name, self.loading)

    def _score(self, model: Any, folder: Path) -> Score:
        text, windows = self.scoring.text, self.scoring.windows
        return score(model, text, folder, windows, memory=self.memory, progress=self.progress)


@dataclass(frozen=True)
class _Description:
    """What is known of a row before it is scored."""

    run: str
    model: str
    bases: int | None = None
    rank: int | None = None
    kept: float | None = None
    bits: float | None = None
    errors: dict[str, float] = field(default_factory=dict)

    def row(self, scored: Score) -> Row:
        """The row with its score."""
        sizes = (self.bases, self.rank, self.kept)
        return Row(self.run, self.model, *sizes, self.errors, scored, self.bits)


def _description(run: Path, variant: Variant) -> _Description:
    with open_trained_run(run, trained=False) as source:
        bits = variant.bits_per_weight(source)
        if not variant.of_run:
            return _Description("", variant.name, bits=bits)
        first = source.groups[0].group
        bases = None if variant.of_svd else first.bases
        rank = first.sizes.svd_rank if variant.of_svd else first.rank
        return _Description(run.name, variant.name, bases, rank, _kept(source, variant), bits)


def _kept(source: TrainedRun, variant: Variant) -> float:
    """Parameters kept over parameters replaced, all groups together."""
    whole = kept = 0.0
    for fitted in source.groups:
        sizes = fitted.group.sizes
        elements = sizes.experts * sizes.p * sizes.d
        codes = len(fitted.codes.values)
        whole += elements
        kept += elements * (sizes.svd_ratio if variant.of_svd else sizes.parameter_ratio(codes))
    return kept / whole


def _common_origin(runs: Sequence[Path], *, same_experts: bool) -> Path:
    """The folder of the checkpoint that all `runs` were made from, replacing what the first does.

    Raises InputError where they differ; experts count with `same_experts` only.
    """
    roots, members = {}, {}
    for run in runs:
        with open_trained_run(run, trained=False) as source:
            roots[run] = source.index.root
            members[run] = {key_of(e) for fitted in source.groups for e in fitted.group.experts}
            source.index.fetch_files(source.index.files)
    first = runs[0]
    for run, root in roots.items():
        if root != roots[first]:
            raise InputError(
                f"{run}: made from {root}, but {first} from {roots[first]}. "
                "Compare runs of one checkpoint"
            )
        if same_experts and members[run] != members[first]:
            raise InputError(
                f"{run}: replaces other experts than {first}, so bits a weight are not of the same "
                f"weights. Give {option('frontier')} runs of the same families and layers"
            )
    return roots[first]


@contextmanager
def _workspace(work: Path | None) -> Iterator[Path]:
    if work is not None:
        make_folder(work)
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="globe-eval-") as folder:
        yield Path(folder)
