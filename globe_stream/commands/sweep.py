"""Several seeding methods side by side, on the same statistics, proxies and Gram matrices.

Statistics are gathered once, proxies and Gram once for each kind of proxies that the methods work
on; then every method makes its atoms and codes, and a pass measures them with refitted adapters.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from globe_stream.commands.experts import (
    GroupedExperts,
    Places,
    open_experts,
    without_zero_experts,
)
from globe_stream.commands.session import Plans, Resources, Session
from globe_stream.commands.wording import worded
from globe_stream.config import METHODS, RuntimeConfig, SeedConfig, SelectionConfig
from globe_stream.engine.context import Context
from globe_stream.engine.stream import Pass, finished, stream
from globe_stream.errors import InputError, Interrupted, option
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.svd_baseline import BaselineAccumulator, sampled_experts
from globe_stream.io.records import Json, Record
from globe_stream.memory import planner
from globe_stream.seeding.methods import gram_products, proxies_for
from globe_stream.seeding.pipeline import Seeding
from globe_stream.seeding.records import STAGES, AtomsRecord, MeasureRecord, StatisticsRecord
from globe_stream.store.run import Run

SHARED = ("statistics", "proxies", "gram")
"""Stages that methods on the same kind of proxies have in common."""


@dataclass(frozen=True)
class SweepRow:
    """One method on one group of experts; costs are those of seeding with this method alone."""

    group: str
    method: str
    proxies: str
    relative_frobenius_error: float  # of the weights, adapters refitted
    proxy_relative_error: float
    explained_variance: float
    median_support: float
    method_seconds: float  # atoms and codes
    seconds: float  # with statistics, proxies, Gram and measuring
    bytes_read: int
    passes: float  # bytes read over the bytes of the group's experts
    peak_memory_bytes: int
    price_bytes: int


@dataclass(frozen=True)
class SweepResult:
    """Rows by group, then as the methods were given, and the equal-parameter SVD beside them."""

    model: str
    memory_budget_bytes: int
    rows: tuple[SweepRow, ...]
    svd: dict[str, float]  # its relative error by group

    def document(self) -> Json:
        """As one JSON document."""
        return {
            "format": 1,
            "model": self.model,
            "memory_budget_bytes": self.memory_budget_bytes,
            "svd_equal_parameters_relative_error": dict(self.svd),
            "rows": [_row_document(row) for row in self.rows],
        }


def _row_document(row: SweepRow) -> Json:
    values = asdict(row)
    return {"unit": values.pop("group"), **values}


def sweep_methods(
    model: str,
    selection: SelectionConfig,
    seeding: SeedConfig,
    methods: Sequence[str],
    runtime: RuntimeConfig,
    *,
    run: Path | None = None,
    silent: bool = False,
) -> SweepResult:
    """Seed every group of `model` with each of `methods`, other options as in `seeding`.

    Proxies are `seeding.proxies` for the methods that work on them, else the method's own. What is
    written meanwhile goes to the new or empty folder `run`, or a temporary one, and is deleted.
    Raises InputError for unknown or repeated methods, a budget too small and what `seed` refuses.
    """
    _require_distinct(methods)
    configs = [_config(seeding, method) for method in methods]
    session = Session.open(runtime, silent=silent)

    def work(zero: Places) -> SweepResult:
        experts = open_experts(model, selection, seeding, zero)
        return _compare(model, experts, configs, session, run)

    return without_zero_experts(work)


def _compare(
    model: str,
    experts: GroupedExperts,
    configs: Sequence[SeedConfig],
    session: Session,
    run: Path | None,
) -> SweepResult:
    resources = session.resources()
    plans = _plans(experts.groups, frozenset(map(_kind, configs)), resources)
    experts.fetch()
    with _context(session, resources, run) as context:
        for line in experts.notes:
            context.progress.say(worded(line))
        rows, svd = [], {}
        for group in experts.groups:
            rows += _compare_group(context, group, configs, plans[group.key])
            svd[group.key] = _baseline(context, group, next(iter(plans[group.key].values())))
    return SweepResult(model, resources.limit, tuple(rows), svd)


def _plans(
    groups: Sequence[ExpertGroup], kinds: frozenset[str], resources: Resources
) -> dict[str, dict[str, Plans]]:
    """Plans by group and kind of proxies; InputError that names the stage that needs most."""
    limit, base = resources.limit, resources.base
    stages = {
        group.key: {kind: planner.seed_stages(group, kind, kinds) for kind in sorted(kinds)}
        for group in groups
    }
    needed = [s for of in stages.values() for own in of.values() for s in own.values()]
    planner.require(needed, limit, base)
    return {
        key: {kind: planner.plans(own, limit, base) for kind, own in of.items()}
        for key, of in stages.items()
    }


# -- one group -----------------------------------------------------------------------------------


def _compare_group(
    context: Context,
    group: ExpertGroup,
    configs: Sequence[SeedConfig],
    plans: dict[str, Plans],
) -> list[SweepRow]:
    """A row for every one of `configs`, in their order; `plans` by kind of proxies."""
    rows = {}
    kinds = frozenset(plans)
    for kind in sorted(kinds):
        members = [config for config in configs if _kind(config) == kind]
        dense = [c for c in members if gram_products(c, group.sizes.experts, group.bases) is None]
        first = (dense or members)[0]
        _share(Seeding(context, group, first, plans[kind], kinds))
        for config in members:
            rows[config.method] = _measure(Seeding(context, group, config, plans[kind]))
    context.run.clear_spill()
    return [rows[config.method] for config in configs]


def _share(seeding: Seeding) -> None:
    """Statistics unless they are there, then proxies and Gram of this kind in place of others."""
    if seeding.done("statistics", StatisticsRecord) is None:
        _perform(seeding, "statistics")
    for stage in ("proxies", "gram"):
        _perform(seeding, stage)


def _measure(seeding: Seeding) -> SweepRow:
    for stage in ("atoms", "measure"):
        _perform(seeding, stage)
    stages = (*SHARED, "atoms", "measure")
    costs = [seeding.require(stage, STAGES[stage]).cost for stage in stages]
    atoms = seeding.require("atoms", AtomsRecord)
    measured = seeding.require("measure", MeasureRecord)
    context = seeding.context
    names = [seeding.stage_name(stage) for stage in stages]
    read = sum(cost.bytes_read for cost in costs)
    return SweepRow(
        group=seeding.group.key,
        method=seeding.config.method,
        proxies=_kind(seeding.config),
        relative_frobenius_error=measured.errors.relative_frobenius_error,
        proxy_relative_error=atoms.proxy_relative_error,
        explained_variance=atoms.explained_variance,
        median_support=atoms.codes.median_support,
        method_seconds=atoms.cost.seconds,
        seconds=sum(cost.seconds for cost in costs),
        bytes_read=read,
        passes=read / seeding.group.sizes.stored_bytes,
        peak_memory_bytes=max(context.meter.peaks[name] for name in names),
        price_bytes=context.base + max(context.estimates[name] for name in names),
    )


def _perform(seeding: Seeding, stage: str) -> None:
    """Carry out `stage` again, with its own peak and estimate."""
    context, name = seeding.context, seeding.stage_name(stage)
    context.meter.peaks.pop(name, None)
    context.estimates.pop(name, None)
    seeding.run_stage(stage)


def _baseline(context: Context, group: ExpertGroup, plans: Plans) -> float:
    """Relative error of the equal-parameter SVD, of a sample of large experts."""
    experts = tuple(group.experts[k] for k in sampled_experts(group))
    task = Pass(group.key, "baseline", experts, plans["baseline"].batch_plan.batch)
    accumulator = BaselineAccumulator(group.sizes.svd_rank)
    with context.stage(f"{group.key}/seed/baseline", plans["baseline"].estimate_bytes):
        stream(context, task, accumulator)
    states, drop = finished(task)
    context.run.commit(states, drop=drop)
    return accumulator.relative_error


# -- preparation ---------------------------------------------------------------------------------


def _config(seeding: SeedConfig, method: str) -> SeedConfig:
    """`seeding` with `method`, and with its proxies if the method works on those."""
    own = proxies_for(method)
    try:
        kind = proxies_for(method, seeding.proxies)
    except InputError:
        kind = own
    return seeding.changed(method=method, proxies=kind)


def _kind(config: SeedConfig) -> str:
    return proxies_for(config.method, config.proxies)


def _require_distinct(methods: Sequence[str]) -> None:
    if not methods:
        raise InputError(f"{option('methods')} names no method: give at least one")
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise InputError(
            f"{option('methods')} {unknown[0]!r} is not known: use some of {', '.join(METHODS)}"
        )
    repeated = {method for method in methods if methods.count(method) > 1}
    if repeated:
        raise InputError(
            f"{option('methods')} names {sorted(repeated)[0]} more than once: give it once"
        )


@contextmanager
def _context(session: Session, resources: Resources, folder: Path | None) -> Iterator[Context]:
    """A context whose run directory is deleted in the end."""
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: not an empty folder. Choose another {option('run')}")
    parent = folder if folder is not None else Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=parent, prefix="sweep-") as path,
        _stopped_for_good(),
        Run.create(Path(path) / "run", Record()) as run,
        session.working_on(
            run,
            resources,
            checkpoint_seconds=float("inf"),
            work="the comparison",
            answer="stopping after this batch",
        ) as context,
    ):
        yield context


@contextmanager
def _stopped_for_good() -> Iterator[None]:
    """A comparison keeps nothing that could be continued."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(
            "sweep: stopped; nothing is kept, the same command starts over"
        ) from error
