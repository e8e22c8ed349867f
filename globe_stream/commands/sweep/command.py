"""`sweep`: runs of one model at every point of a grid of options, and how they compare."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from globe_stream.checkpoint.index import open_index
from globe_stream.commands.experts import Places, without_zero_experts
from globe_stream.commands.seed import seed_plans
from globe_stream.commands.session import Resources, Session, memory_limit
from globe_stream.commands.sweep.arrangement import (
    Preparation,
    WarmStart,
    arrange,
    count_passes,
    training_key,
    warm_starts,
)
from globe_stream.commands.sweep.grid import Grid, Point, Values, points_of
from globe_stream.commands.sweep.records import (
    SweepResult,
    SweepRow,
    curve_of,
    point_of,
    rows_of,
    svd_errors,
)
from globe_stream.commands.sweep.scores import Scores
from globe_stream.commands.sweep.warm_starts import WarmStarts, preparation_plans
from globe_stream.commands.train import train, train_plans
from globe_stream.commands.wording import worded
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.engine.progress import Progress
from globe_stream.engine.signals import graceful_interrupts
from globe_stream.errors import InputError, Interrupted, option
from globe_stream.evaluation.text import read_text
from globe_stream.factorization.records import run_header
from globe_stream.io import files
from globe_stream.report.pareto import ParetoPoint, pareto_pictures
from globe_stream.store.lock import LOCK_FILES, RunLock
from globe_stream.store.run import Run

RECORD = "sweep.json"
PICTURES = ("sweep.svg", "sweep.png")
_UNTRACKED = {"wandb_project": None, "wandb_group": None, "tensorboard": False}
_OWN = {"runs", "shared", "seeds", "scores", RECORD, *PICTURES, *LOCK_FILES}


@dataclass(frozen=True)
class SweepOptions:
    """Options that all points have in common; points are trained where `training` is given."""

    selection: SelectionConfig
    seeding: SeedConfig
    training: TrainConfig | None
    runtime: RuntimeConfig


def sweep(
    model: str,
    grid: Grid,
    options: SweepOptions,
    *,
    out: Path | None = None,
    scratch: Path | None = None,
    text: Path | None = None,
    silent: bool = False,
) -> SweepResult:
    """Seed, and train, `model` at every point of `grid`.

    Runs, record and picture are kept in the folder `out`, and the same call continues there;
    without it all is written to the empty folder `scratch`, or a temporary one, and deleted. With
    `text`, what every run makes of the model is scored on it, in bits per byte. Raises InputError
    before any work for options, sizes, memory and folders that cannot be used.
    """
    points = points_of(grid, options.seeding, options.training)
    if text is not None and any(point.training is None for point in points):
        raise InputError(
            f"{option('text')}: models are made of trained runs. Give {option('epochs')}"
        )
    with _folder(out, scratch) as folder:
        index = open_index(
            model, options.selection.revision, options.selection.include_mtp, options.selection.rule
        )
        scores = None
        if text is not None:
            read_text(text)
            memory = memory_limit(options.runtime, None)
            scores = Scores(folder / "scores", text, memory, silent)

        def work(zero: Places) -> SweepResult:
            starts = warm_starts(index, options.selection, points, zero)
            job = _Job(model, grid, options, tuple(points), tuple(starts), folder, scores, silent)
            return job.carry_out()

        return without_zero_experts(work, _known_zero(folder))


@dataclass(frozen=True)
class _Job:
    model: str
    grid: Grid
    options: SweepOptions
    points: tuple[Point, ...]
    starts: tuple[WarmStart, ...]
    folder: Path
    scores: Scores | None
    silent: bool

    def carry_out(self) -> SweepResult:
        """Everything that is not done yet, in order: warm starts, training, scores, record."""
        session = Session.open(self.options.runtime.changed(**_UNTRACKED), silent=self.silent)
        resources = session.resources()
        preparations = arrange(self.starts)
        _require_memory(preparations, resources)
        made = self._made()
        names = {key: point.name for key, point in made.items()}
        with graceful_interrupts("stopping after this batch") as interrupt:
            shop = WarmStarts(
                self.folder, self.options.selection, session, resources, interrupt, names
            )
            shop.require_fitting(self.starts)
            self.starts[0].experts.fetch(anew=self.options.runtime.force_download)
            for note in self.starts[0].experts.notes:
                self._say(note)
            shop.make(preparations)
            for number, point in enumerate(made.values(), start=1):
                if interrupt.requested:
                    raise Interrupted(
                        "sweep: stopped between two points; the same command continues"
                    )
                self._say(f"point {number} of {len(made)}: {point.name}")
                self._track_and_train(shop.run_of(point), point, session, resources)
        return self._recorded(self._scored(self._result(shop, preparations)))

    def _made(self) -> dict[str, Point]:
        """The points that have runs: of several that compute the same, the first."""
        first: dict[str, Point] = {}
        for point in self.points:
            first.setdefault(training_key(point), point)
        return first

    def _track_and_train(
        self, path: Path, point: Point, session: Session, resources: Resources
    ) -> None:
        runtime = self.options.runtime.changed(force_download=False)
        if runtime.wandb_project is not None and runtime.wandb_group is None:
            runtime = runtime.changed(wandb_group=self.folder.resolve().name)
        if point.training is not None:
            train(path, point.training, runtime, inherit=False, silent=self.silent)
        elif runtime.wandb_project is not None or runtime.tensorboard:
            tracked = replace(session, runtime=runtime)
            with Run(path, writable=True) as run, tracked.recording(run, resources, {}):
                pass

    def _result(self, shop: WarmStarts, preparations: Sequence[Preparation]) -> SweepResult:
        groups = {
            point.name: start.experts.groups for start in self.starts for point in start.points
        }
        rows: list[SweepRow] = []
        found = []
        for point in self.points:
            path = shop.run_of(point)
            own = rows_of(point, path, groups[point.name])
            found.append(point_of(point, path, own))
            rows += own
        return SweepResult(
            model=self.model,
            memory_budget_bytes=shop.resources.limit,
            options=self.grid.names,
            svd_equal_parameters_relative_error=svd_errors(rows),
            svd_curve=curve_of(shop.run_of(self.points[0])),
            passes=count_passes(preparations),
            points=tuple(found),
            rows=tuple(rows),
        )

    def _scored(self, result: SweepResult) -> SweepResult:
        """`result` with bits per byte, if there is a text to score on."""
        if self.scores is None:
            return result
        runs = [Path(point.run) for point in result.points]
        original = self.scores.original(runs[0])
        found, svd = self.scores.of_runs(runs), self.scores.of_svd(runs)
        scored = [
            replace(one, bits_per_byte=found[Path(one.run)], svd_bits_per_byte=svd[Path(one.run)])
            for one in result.points
        ]
        return replace(result, points=tuple(scored), original_bits_per_byte=original)

    def _recorded(self, result: SweepResult) -> SweepResult:
        """`result`, with the record and the pictures beside the runs."""
        places = [
            ParetoPoint(
                _series(self.grid, point.options),
                point.parameters_kept,
                point.relative_frobenius_error,
                point.bits_per_byte,
                point.svd_bits_per_byte,
            )
            for point in result.points
        ]
        pictures = pareto_pictures(places, result.svd_curve, result.original_bits_per_byte)
        for name, picture in zip(PICTURES, pictures.values(), strict=True):
            files.write_bytes(self.folder / name, picture)
        files.write_text(self.folder / RECORD, json.dumps(result.to_json(), indent=1))
        return result

    def _say(self, line: str) -> None:
        Progress(silent=self.silent).say(worded(line))


def _series(grid: Grid, values: Values) -> str:
    """The points that look alike in the picture: those with the first option swept in common."""
    name = grid.names[0]
    return f"{name} {values.get(name, 'default')}"


def _require_memory(preparations: Sequence[Preparation], resources: Resources) -> None:
    """InputError that names the stage that needs most, when the budget is too small for one."""
    for preparation in preparations:
        preparation_plans(preparation.starts[0], preparation.kinds, resources)
        for start in preparation.starts:
            seed_plans(start.experts.groups, start.seeding, resources)
            for point in start.points:
                if point.training is not None:
                    train_plans(start.experts.groups, point.training, resources)


def _known_zero(folder: Path) -> Places:
    """The experts that earlier runs in `folder` found to be zero everywhere."""
    runs = sorted(path for path in (folder / "runs").glob("*") if Run.exists(path))
    return run_header(Run(runs[0], writable=False)).zero_experts if runs else ()


@contextmanager
def _folder(out: Path | None, scratch: Path | None) -> Iterator[Path]:
    """The folder to work in: `out`, under a lock, or one that is deleted in the end.

    One that was made here goes again with bad input that comes to light before any work.
    """
    if out is None:
        with _scratch_folder(scratch) as folder:
            yield folder
        return
    others = [] if not out.exists() else ["it"] if not out.is_dir() else _others(out)
    if others:
        raise InputError(
            f"{out}: not empty and not of a sweep ({others[0]}). Choose another {option('out')}"
        )
    made = not out.exists()
    files.make_folder(out)
    try:
        with RunLock(out):
            yield out
    except InputError:
        if made and {child.name for child in out.iterdir()} <= set(LOCK_FILES):
            files.remove(out)
        raise


def _others(out: Path) -> list[str]:
    return sorted(child.name for child in out.iterdir() if child.name not in _OWN)


@contextmanager
def _scratch_folder(folder: Path | None) -> Iterator[Path]:
    """A new folder in `folder`, or a temporary one; deleted in the end, so nothing continues."""
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: not an empty folder. Choose another {option('run')}")
    parent = folder if folder is not None else Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix="sweep-") as path:
            yield Path(path)
    except Interrupted as error:
        raise Interrupted(
            "sweep: stopped; nothing is kept, the same command starts over"
        ) from error
