"""The library's entry points: what the commands `plan`, `seed`, `train` and `status` call."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from globe_stream.checkpoint.index import ExpertIndex, open_index, require_revisions
from globe_stream.checkpoint.selection import Selection, parse_layers
from globe_stream.commands.compatibility import (
    foreign_options,
    matching_run,
    mismatch,
    source_changes,
)
from globe_stream.commands.completion import is_complete, why_complete
from globe_stream.commands.status import status_document
from globe_stream.commands.wording import worded
from globe_stream.config import (
    ExportConfig,
    RuntimeConfig,
    SeedConfig,
    SelectionConfig,
    TrainConfig,
    differences,
    to_toml,
)
from globe_stream.engine import device as devices
from globe_stream.engine.context import Context
from globe_stream.engine.device import Machine
from globe_stream.engine.metrics import Metrics, MetricsFile, Sink
from globe_stream.engine.progress import Bar, Progress
from globe_stream.engine.records import (
    BUDGET,
    MACHINE,
    MEMORY,
    TRAINING,
    Budget,
    PeakMemory,
    PlansRecord,
    TrainingOptions,
)
from globe_stream.engine.signals import graceful_interrupts
from globe_stream.engine.trackers import WandbSink
from globe_stream.errors import InputError, option
from globe_stream.export.dense import export_dense
from globe_stream.export.factors import export_factors
from globe_stream.factorization.groups import ExpertGroup, make_groups
from globe_stream.factorization.records import (
    GroupRecord,
    GroupState,
    RunConfig,
    RunHeader,
    group_state,
    run_header,
)
from globe_stream.formatting import format_bytes, parse_size
from globe_stream.io import files
from globe_stream.io.records import Record
from globe_stream.io.system_errors import explained
from globe_stream.memory import allocator, planner
from globe_stream.memory.cost_model import StagePlan
from globe_stream.memory.meter import Meter
from globe_stream.seeding.methods import proxies_for
from globe_stream.seeding.pipeline import Seeding
from globe_stream.store.run import Run
from globe_stream.training.trainer import Trainer
from globe_stream.training.warnings import training_warnings

FREE_SHARE = 0.6
"""Share of the free memory that is the budget when none is given."""

Document = dict[str, Any]


@dataclass(frozen=True)
class GroupedExperts:
    """The selected experts of a checkpoint and the units they form."""

    index: ExpertIndex
    groups: tuple[ExpertGroup, ...]


def open_experts(model: str, selection: SelectionConfig, seeding: SeedConfig) -> GroupedExperts:
    """Index `model`, select experts and cut them into units; reads headers only."""
    require_revisions(model, selection.revision)
    index = open_index(model, selection.revision, selection.include_mtp)
    return group_experts(index, selection, seeding)


def group_experts(
    index: ExpertIndex, selection: SelectionConfig, seeding: SeedConfig
) -> GroupedExperts:
    """Select experts of `index` and cut them into units; InputError where sizes do not fit."""
    chosen = index.select(
        Selection(
            families=selection.family_names,
            single_layer=selection.single_layer,
            layers=None if selection.layers is None else parse_layers(selection.layers),
            max_experts=selection.max_experts,
            sample_method=selection.sample_method,
            include_shared=selection.include_shared,
        )
    )
    return GroupedExperts(chosen, tuple(make_groups(chosen, selection.family_names, seeding)))


def seed(
    model: str,
    path: Path,
    selection: SelectionConfig,
    seeding: SeedConfig,
    runtime: RuntimeConfig,
    *,
    fresh: bool = False,
    silent: bool = False,
) -> Document:
    """Warm start of every unit of `model` in the run directory `path`; returns the status.

    The same call again continues. Raises InputError when `path` holds a run of another model
    or configuration, unless `fresh`, which deletes that run.
    """
    allocator.return_freed_memory()
    source = open_experts(model, selection, seeding)
    device, reason = devices.choose_device(runtime.device)
    header = _header(source, selection, seeding, device)
    run = matching_run(path, header, fresh)
    with _closing_on_error(run):
        machine = _prepare(run, device, reason)
        limit, base = memory_limit(runtime, run), Meter(device).now()
        plans = _seed_plans(source.groups, seeding, limit, base)
        if fresh and (path / "ledger.jsonl").exists():
            Run.erase(path)
        run = run or Run.create(path, header)
    with run, _context(run, runtime, device, limit, base, silent) as context:
        _record_machine(run, machine)
        if not (run.path / "config.toml").exists():
            _write_config(run, None)
        source.index.fetch([expert for group in source.groups for expert in group.experts])
        for group in source.groups:
            chosen = _recorded_plans(run, f"{group.key}:plans:seed", plans[group.key], limit)
            Seeding(context, group, seeding, chosen).run()
        return _finish(context)


def train(
    path: Path,
    training: TrainConfig,
    runtime: RuntimeConfig,
    *,
    fresh: bool = False,
    silent: bool = False,
) -> Document:
    """Alternating minimisation of every unit of the run at `path`; returns the status.

    The same call again continues; more epochs than were done go on from there. Raises
    InputError when the source or the configuration changed, unless `fresh`, which trains again
    from the seeds.
    """
    allocator.return_freed_memory()
    with Run(path, writable=True) as run:
        source = _same_source(run)
        _require_seeded(run, source)
        device, reason = devices.choose_device(runtime.device)
        machine = _prepare(run, device, reason)
        limit, base = memory_limit(runtime, run), Meter(device).now()
        plans = _train_plans(source.groups, training, limit, base)
        _adopt_config(run, training, fresh)
        _record_machine(run, machine)
        with _context(run, runtime, device, limit, base, silent) as context:
            _say_what_to_expect(context, source.groups, training)
            source.index.fetch([expert for group in source.groups for expert in group.experts])
            for group in source.groups:
                chosen = _recorded_plans(run, f"{group.key}:plans:train", plans[group.key], limit)
                Trainer(context, group, training, chosen["train"]).run()
            return _finish(context)


def export(
    path: Path,
    wanted: ExportConfig,
    *,
    model: str | None = None,
    runtime: RuntimeConfig,
    command: str = "",
    silent: bool = False,
) -> Document:
    """Write the trained run at `path` as `wanted` says.

    The same call again continues. Raises InputError for a run that is not trained, a source that
    changed, a folder that holds something else, and budgets or disks too small.
    """
    allocator.return_freed_memory()
    writer = {"factors": export_factors, "dense": export_dense}[wanted.format]
    limit = memory_limit(runtime, None)
    with step_bar(f"export {wanted.format}", silent=silent) as progress:
        return writer(
            path,
            wanted.out,
            dtype=wanted.dtype,
            memory=limit,
            model=model,
            command=command,
            progress=progress,
        ).document()


def status(path: Path) -> Document:
    """Where the run at `path` stands; changes nothing."""
    return status_document(Run(path, writable=False))


@contextmanager
def step_bar(title: str, *, silent: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """A bar driven by calls of (done, total, note), total known from the first call on."""
    progress, meter = Progress(silent=silent), Meter()
    bars: list[Bar] = []
    finished = 0

    def step(done: int, total: int, note: str) -> None:
        nonlocal finished
        if done < finished or not bars:
            bars.append(progress.bar(title, total))
            finished = 0
        bars[-1].advance(done - finished, note, meter.now())
        finished = done

    try:
        yield step
    finally:
        for bar in bars:
            bar.close()


def memory_limit(runtime: RuntimeConfig, run: Run | None) -> int:
    """The budget in bytes: as given, else the run's own, else a share of what is free."""
    if runtime.memory is not None:
        return parse_size(runtime.memory)
    recorded = run.state(BUDGET, Budget) if run is not None else None
    if recorded is not None:
        return recorded.bytes
    return int(FREE_SHARE * psutil.virtual_memory().available)


@contextmanager
def _closing_on_error(run: Run | None) -> Iterator[None]:
    """Let go of the run's lock when the block fails."""
    try:
        yield
    except BaseException:
        if run is not None:
            run.close()
        raise


# -- run directories ---------------------------------------------------------------------------


def _header(
    source: GroupedExperts, selection: SelectionConfig, seeding: SeedConfig, device: torch.device
) -> RunHeader:
    return RunHeader(
        source.index.model,
        source.index.model_type,
        source.index.revision,
        source.index.fingerprint(),
        RunConfig(selection.identity(), seeding.identity(), device.type),
        tuple(GroupRecord.of(group) for group in source.groups),
    )


def _same_source(run: Run) -> GroupedExperts:
    """The experts that the run was seeded from; InputError when they changed since."""
    header = run_header(run)
    try:
        selection = SelectionConfig.from_mapping(header.config.selection, "selection")
        seeding = SeedConfig.from_mapping(header.config.seed, "seed")
    except InputError as error:
        raise InputError(
            f"{run.path}: begun by another version of globe-stream ({error.message}). "
            f"Use that version, or seed again with {option('fresh')} or into a new {option('run')}"
        ) from error
    source = open_experts(header.model, selection, seeding)
    changed = source_changes(header.fingerprint, source.index.fingerprint())
    if changed:
        raise InputError(
            f"{header.model}: changed since {run.path} was seeded: {'; '.join(changed)}. "
            f"Restore the checkpoint, or seed again with {option('fresh')}"
        )
    return source


def _require_seeded(run: Run, source: GroupedExperts) -> None:
    waiting = [group.key for group in source.groups if group_state(run, group.key) is None]
    if waiting:
        raise InputError(
            f"{run.path}: seeding is not finished ({', '.join(waiting[:3])}). "
            "Give the seed command again first"
        )


def _adopt_config(run: Run, training: TrainConfig, fresh: bool) -> None:
    """Record the training configuration, or insist that it is the recorded one."""
    state = run.state(TRAINING, TrainingOptions)
    recorded = None if state is None else state.options
    if fresh and recorded is not None:
        _forget_training(run)
        recorded = None
    if recorded is None:
        run.commit({TRAINING: TrainingOptions(training.identity())})
    else:
        changed = differences(recorded, training.identity())
        if changed:
            foreign = foreign_options(recorded, training.identity())
            advice = f"train again from the seeds with {option('fresh')}"
            raise mismatch(
                f"{run.path}: training began with another configuration",
                changed,
                [foreign],
                f"Seed into a new {option('run')}, or {advice}"
                if foreign
                else f"Give the same options, or {advice}",
            )
    _write_config(run, training)


def _forget_training(run: Run) -> None:
    """Put the seeds back in place and drop everything that training added."""
    for group in run_header(run).groups:
        key = group.key
        seeded = run.state(f"{key}:seeded", GroupState)
        move = [
            (f"{key}/seed/{name}", f"{key}/{name}")
            for name in ("bank", "codes")
            if run.has(f"{key}/seed/{name}")
        ]
        run.commit(
            {key: seeded, f"{key}:next": None, f"{key}:partial": None, TRAINING: None},
            move=move,
            drop=[f"{key}/next", f"{key}/partial"],
        )


def _write_config(run: Run, training: TrainConfig | None) -> None:
    header = run_header(run)
    sections: dict[str, Any] = {
        "model": {"model": header.model, **header.config.selection},
        "seed": header.config.seed,
        "runtime": {"device": header.config.device},
    }
    if training is not None:
        sections["train"] = training.model_dump()
    files.write_text(run.path / "config.toml", to_toml(sections))


def _prepare(run: Run | None, device: torch.device, reason: str) -> devices.Machine:
    """Choose the GEMM precision, or take the one the run began with: no bit may change."""
    machine = devices.prepare(device, reason, run.state(MACHINE, Machine) if run else None)
    devices.warm_up(device)
    return machine


def _record_machine(run: Run, machine: devices.Machine) -> None:
    if run.state(MACHINE, Machine) != machine:
        run.commit({MACHINE: machine})


def _say_what_to_expect(
    context: Context, groups: Sequence[ExpertGroup], training: TrainConfig
) -> None:
    """Tell that nothing is left to do, or which settings do not do what they seem to."""
    if is_complete(context.run, training):
        context.progress.say(worded(why_complete(context.run, training)))
        return
    lines = [line for group in groups for line in training_warnings(training, group.bases)]
    for line in dict.fromkeys(lines):
        context.progress.say(worded(line))


def _seed_plans(
    groups: Sequence[ExpertGroup], seeding: SeedConfig, limit: int, base: int
) -> dict[str, dict[str, StagePlan]]:
    """The plans of every unit; InputError that names the stage that needs most of all."""
    kind = proxies_for(seeding.method, seeding.proxies)
    stages = (s for group in groups for s in planner.seed_stages(group, kind).values())
    planner.require(stages, limit, base)
    return {group.key: planner.seed_plans(group, kind, limit, base) for group in groups}


def _train_plans(
    groups: Sequence[ExpertGroup], training: TrainConfig, limit: int, base: int
) -> dict[str, dict[str, StagePlan]]:
    """As `_seed_plans`, of training."""
    planner.require((planner.train_stage(group, training) for group in groups), limit, base)
    return {
        group.key: {"train": planner.train_plan(group, training, limit, base)} for group in groups
    }


def _recorded_plans(
    run: Run, key: str, plans: dict[str, StagePlan], limit: int
) -> dict[str, StagePlan]:
    """The plans that were recorded for the same budget, else `plans`, now recorded.

    The base is measured anew in every process; without this a resumed run might choose another
    batch and differ in the last bits.
    """
    recorded = run.state(key, PlansRecord)
    if recorded is not None and recorded.limit == limit:
        return recorded.stages
    run.commit({key: PlansRecord(limit, plans), BUDGET: Budget(limit)})
    return plans


@contextmanager
def _context(
    run: Run, runtime: RuntimeConfig, device: torch.device, limit: int, base: int, silent: bool
) -> Iterator[Context]:
    sinks: list[Sink] = [MetricsFile(run.path / "metrics.jsonl")]
    if runtime.wandb_project is not None:
        sinks.append(WandbSink(run.path, runtime.wandb_project, run_header(run).config.to_json()))
    metrics, meter = Metrics(sinks), Meter(device)
    run.beside = lambda: _peak_state(run, meter)
    try:
        with (
            graceful_interrupts() as interrupt,
            explained(run.path, "writing the run"),
        ):
            yield Context(
                run,
                metrics,
                Progress(silent=silent),
                meter,
                interrupt,
                device,
                60 * runtime.checkpoint_every,
                limit,
                base,
            )
    finally:
        metrics.close()


def _peak_state(run: Run, meter: Meter) -> dict[str, Record]:
    """The highest peak of this command and those before it, for every commit to record."""
    before = run.state(MEMORY, PeakMemory) or PeakMemory(0)
    return {MEMORY: PeakMemory(max(before.bytes, meter.peak))}


def _finish(context: Context) -> Document:
    """Record the peak, say how it compares with the price, sweep, and return the status."""
    run, meter = context.run, context.meter
    run.clear_spill()
    if meter.peaks:
        run.commit({})
        for stage in meter.peaks:
            values = context.memory_values(stage)
            context.progress.say(
                f"memory of {stage}: priced {format_bytes(values['memory/price_bytes'])}, "
                f"peak {format_bytes(values['memory/peak_bytes'])}"
            )
    return status_document(run)
