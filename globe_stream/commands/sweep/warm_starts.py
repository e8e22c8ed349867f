"""Seeds the points of a sweep: what they share is read once and handed on.

Every preparation is a run of its own in `shared`, with the proxies beside it until the last warm
start that needs them is made; a warm start is seeded in `seeds` and becomes the runs of its points.
All of it continues where it was interrupted, and is deleted when it is no longer needed.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from globe_stream.commands.compatibility import matching_run
from globe_stream.commands.operations import expected_seeding
from globe_stream.commands.run_files import write_config
from globe_stream.commands.seed import new_header, scan, seed_plans
from globe_stream.commands.session import Plans, Resources, Session, recorded_plans
from globe_stream.commands.sweep.arrangement import Preparation, WarmStart, training_key
from globe_stream.commands.sweep.grid import Point, digest
from globe_stream.config import SelectionConfig
from globe_stream.engine.context import Context
from globe_stream.engine.metrics import METRICS_FILE, MetricsFile
from globe_stream.engine.signals import Interrupt
from globe_stream.errors import Interrupted
from globe_stream.factorization.records import RunHeader
from globe_stream.factorization.svd_baseline import ENERGIES
from globe_stream.io import files
from globe_stream.memory import planner
from globe_stream.seeding.group_stages import proxies_file
from globe_stream.seeding.methods import gram_products
from globe_stream.seeding.pipeline import Baseline, Seeding
from globe_stream.seeding.records import STAGES, BaselineRecord
from globe_stream.seeding.sharing import SHARED, hand_on, hand_on_metrics
from globe_stream.store import arrays
from globe_stream.store.run import Run
from globe_stream.store.twin import make_twin

Baselines = dict[tuple[str, str], Baseline]


@dataclass
class WarmStarts:
    """Makes the runs of all points, each where `run_of` says, seeded."""

    out: Path
    selection: SelectionConfig
    session: Session
    resources: Resources
    interrupt: Interrupt
    names: dict[str, str]
    """The name of the run by what is computed: points that compute the same have one."""
    baselines: Baselines = field(default_factory=dict)

    def run_of(self, point: Point) -> Path:
        """The run directory of `point`."""
        return self.out / "runs" / self.names[training_key(point)]

    def require_fitting(self, starts: Sequence[WarmStart]) -> None:
        """InputError when a run that is there is of another model or configuration."""
        for start in starts:
            header = self._header(start)
            for point in start.points:
                run = matching_run(self.run_of(point), header, False, self.session.world)
                if run is not None:
                    run.close()

    def make(self, preparations: Sequence[Preparation]) -> None:
        """Seed every point that has no run yet, and delete what they shared."""
        firsts: dict[str, Path] = {}
        for preparation in preparations:
            waiting = [start for start in preparation.starts if self._missing(start)]
            self._note_baselines(preparation)
            if not waiting:
                continue
            path = self.out / "shared" / preparation.name
            self._prepare(preparation, path, firsts.get(preparation.statistics))
            firsts.setdefault(preparation.statistics, path)
            for start in waiting:
                self._seed(start, path)
                self._become_runs(start)
            with Run(path, writable=True) as run:
                run.clear_spill()
        for folder in ("shared", "seeds"):
            files.remove(self.out / folder)

    # -- one preparation -------------------------------------------------------------------

    def _prepare(self, preparation: Preparation, path: Path, first: Path | None) -> None:
        """Carry out the stages of SHARED at `path`, with the statistics of the run `first`."""
        start = preparation.starts[0]
        kinds = preparation.kinds if first is None else frozenset({start.kind})
        plans = preparation_plans(start, kinds, self.resources)
        with self._opened(path, start) as run:
            if first is not None:
                _take_statistics(Run(first, writable=False), run, start)
            with self._keeping_proxies(run) as context:
                seedings = [
                    Seeding(context, group, start.seeding, plans[group.key], kinds)
                    for group in start.experts.groups
                ]
                scan(seedings)
                for seeding in seedings:
                    _make_proxies(seeding)
        self._stop_if_asked()

    # -- one warm start --------------------------------------------------------------------

    def _seed(self, start: WarmStart, prepared: Path) -> None:
        """The warm start in `seeds`, from what is `prepared`."""
        path = self.out / "seeds" / start.name
        plans = seed_plans(start.experts.groups, start.seeding, self.resources)
        source = Run(prepared, writable=False)
        with self._opened(path, start) as run:
            hand_on_metrics(source, run, SHARED)
            write_config(run, None)
            with self.session.recording(run, self.resources, {}) as context:
                works = expected_seeding(start.experts.groups, start.seeding)
                context.expect(works, start.experts.groups[0].experts)
                for group in start.experts.groups:
                    self._hand_on(source, run, start, group.key)
                    chosen = recorded_plans(
                        run, f"{group.key}:plans:seed", plans[group.key], self.resources.limit
                    )
                    known = self.baselines.get((digest(start.keys.baseline), group.key))
                    Seeding(context, group, start.seeding, chosen, baseline=known).run()
            self._note_baseline(start, run)
        self._stop_if_asked()

    def _hand_on(self, source: Run, run: Run, start: WarmStart, key: str) -> None:
        """Give `run` the shared stages of the group `key` that it has not yet."""
        (group,) = (group for group in start.experts.groups if group.key == key)
        for stage in SHARED:
            if run.state(f"{key}:{stage}", STAGES[stage]) is None:
                hand_on(source, run, group, stage, start.kind)

    def _become_runs(self, start: WarmStart) -> None:
        """Make the seeded run the runs of the points that begin with it."""
        path = self.out / "seeds" / start.name
        for point in start.points:
            target = self.run_of(point)
            if not Run.exists(target):
                files.make_folder(target.parent)
                make_twin(path, target)
        files.remove(path)

    # -- pieces ------------------------------------------------------------------------------

    def _missing(self, start: WarmStart) -> bool:
        return not all(Run.exists(self.run_of(point)) for point in start.points)

    def _note_baselines(self, preparation: Preparation) -> None:
        """Remember the SVDs of equal size that runs made earlier have measured."""
        for start in preparation.starts:
            for point in start.points:
                if Run.exists(self.run_of(point)):
                    self._note_baseline(start, Run(self.run_of(point), writable=False))

    def _note_baseline(self, start: WarmStart, run: Run) -> None:
        for group in start.experts.groups:
            record = run.state(f"{group.key}:baseline", BaselineRecord)
            name = f"{group.key}/{ENERGIES}"
            if record is not None and run.has(name):
                energies = torch.from_numpy(arrays.read(run.array(name)))
                self.baselines[digest(start.keys.baseline), group.key] = record, energies

    def _header(self, start: WarmStart) -> RunHeader:
        return new_header(start.experts, self.selection, start.seeding, self.session, start.zero)

    def _opened(self, path: Path, start: WarmStart) -> Run:
        header = self._header(start)
        return matching_run(path, header, False, self.session.world) or Run.create(path, header)

    def _keeping_proxies(self, run: Run) -> AbstractContextManager[Context]:
        return self.session.working_on(
            run,
            self.resources,
            sinks=[MetricsFile(run.path / METRICS_FILE)],
            checkpoint_seconds=60 * self.session.runtime.checkpoint_every,
        )

    def _stop_if_asked(self) -> None:
        if self.interrupt.requested:
            raise stopped()


def stopped() -> Interrupted:
    """What a sweep that was asked to stop between two runs ends with."""
    return Interrupted("sweep: stopped between two runs; the same command continues")


def preparation_plans(
    start: WarmStart, kinds: frozenset[str], resources: Resources
) -> dict[str, Plans]:
    """The plans of SHARED by group, where statistics serve all `kinds` of proxies."""
    return {
        group.key: planner.plans(
            planner.seed_stages(
                group,
                start.kind,
                kinds,
                gram_products(start.seeding, group.sizes.experts, group.bases),
            ),
            resources.limit,
            resources.base,
        )
        for group in start.experts.groups
    }


def _take_statistics(first: Run, run: Run, start: WarmStart) -> None:
    hand_on_metrics(first, run, ("statistics",))
    for group in start.experts.groups:
        if run.state(f"{group.key}:statistics", STAGES["statistics"]) is None:
            hand_on(first, run, group, "statistics", start.kind)


def _make_proxies(seeding: Seeding) -> None:
    """Proxies and Gram matrix, unless they are there."""
    lost = not proxies_file(seeding.context.run, seeding.group.key).exists()
    if lost or seeding.done("proxies", STAGES["proxies"]) is None:
        seeding.run_stage("proxies")
    if seeding.done("gram", STAGES["gram"]) is None:
        seeding.run_stage("gram")
