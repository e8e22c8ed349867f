"""`seed`: the warm start of every group of experts of a model, in a run directory."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.commands.compatibility import matching_run
from globe_stream.commands.experts import (
    GroupedExperts,
    Places,
    open_experts,
    without_zero_experts,
)
from globe_stream.commands.operations import expected_seeding
from globe_stream.commands.run_files import write_config
from globe_stream.commands.session import Plans, Resources, Session, recorded_plans
from globe_stream.commands.wording import worded
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig
from globe_stream.engine.context import Context
from globe_stream.engine.distributed import join
from globe_stream.engine.status import StatusDocument, run_status
from globe_stream.errors import InputError
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.records import (
    SOURCE,
    GroupRecord,
    RunConfig,
    RunHeader,
    Source,
    run_header,
)
from globe_stream.io import files
from globe_stream.io.world import World
from globe_stream.memory import planner
from globe_stream.memory.planner import Stage
from globe_stream.seeding.methods import gram_products, proxies_for
from globe_stream.seeding.pipeline import Seeding
from globe_stream.seeding.records import STAGES
from globe_stream.seeding.statistics import ZeroExperts
from globe_stream.store.run import Run


def seed(
    model: str,
    path: Path,
    selection: SelectionConfig,
    seeding: SeedConfig,
    runtime: RuntimeConfig,
    *,
    fresh: bool = False,
    silent: bool = False,
) -> StatusDocument:
    """Warm start of every group of `model` in the run directory `path`; returns the status.

    The same call again continues. Raises InputError when `path` holds a run of another model
    or configuration, unless `fresh`, which deletes that run; and for weights that cannot be used,
    which leaves no run unless more than first passes was done. Experts that are zero everywhere are
    kept as they are, which costs a second first pass.
    """
    world = join()
    begun, made = world.of_first((Run.exists(path), not path.exists()))
    known = world.of_first(_known_zero(path) if world.leads and begun and not fresh else ())

    def work(zero: Places) -> StatusDocument:
        anew = fresh or zero != known
        return _seed(model, path, selection, seeding, runtime, zero, fresh=anew, silent=silent)

    try:
        return without_zero_experts(work, known)
    except InputError as error:
        full_disk = isinstance(error.__cause__, OSError)
        if not begun and not full_disk and world.leads:
            _discard_unseeded(path, made)
        raise


def _seed(
    model: str,
    path: Path,
    selection: SelectionConfig,
    seeding: SeedConfig,
    runtime: RuntimeConfig,
    zero: Places,
    *,
    fresh: bool,
    silent: bool,
) -> StatusDocument:
    world = join()
    experts = open_experts(model, selection, seeding, zero)
    session = Session.open(runtime, silent=silent, world=world)
    header = new_header(experts, selection, seeding, session, zero)
    with ExitStack() as held:
        run = matching_run(path, header, fresh, world)
        if run is not None:
            held.enter_context(run)
        resources = session.resources(run)
        plans = seed_plans(experts.groups, seeding, resources)
        session.require_free(resources, (one for own in plans.values() for one in own.values()))
        if run is None:
            run = held.enter_context(_new_run(path, header, fresh, world))
        _record_source(run, header)
        options = {"selection": selection, "seed": seeding}
        with session.recording(run, resources, options) as context:
            for line in (*selection.ignored(), *seeding.ignored(), *experts.notes):
                context.progress.say(worded(line))
            if world.leads and not (path / "config.toml").exists():
                write_config(run, None)
            experts.fetch(anew=runtime.force_download)
            context.expect(expected_seeding(experts.groups, seeding), experts.groups[0].experts)
            seedings = list(_seedings(context, experts.groups, seeding, plans))
            scan(seedings)
            for one in seedings:
                one.run()
        return run_status(run)


def _record_source(run: Run, header: RunHeader) -> None:
    """Record where the checkpoint is now, if it moved since `run` was created."""
    model = run.world.of_first(header.model)
    if run_header(run).model != model:
        run.commit({SOURCE: Source(model)})


def _seedings(
    context: Context, groups: Sequence[ExpertGroup], seeding: SeedConfig, plans: dict[str, Plans]
) -> Iterator[Seeding]:
    """The seeding of every group, by the plans that the run recorded, else by `plans`."""
    for group in groups:
        key = f"{group.key}:plans:seed"
        chosen = recorded_plans(context.run, key, plans[group.key], context.budget)
        yield Seeding(context, group, seeding, chosen)


def _known_zero(path: Path) -> Places:
    """The experts that the run at `path` found to be zero everywhere."""
    return run_header(Run(path, writable=False)).zero_experts


def scan(seedings: Sequence[Seeding]) -> None:
    """The first pass of all, so that weights that cannot be used are found before all else.

    Raises ZeroExperts for all of them together.
    """
    zero: list[ExpertMatrix] = []
    for one in seedings:
        try:
            one.scan()
        except ZeroExperts as found:
            zero += found.experts
    if zero:
        raise ZeroExperts(zero)


def new_header(
    experts: GroupedExperts,
    selection: SelectionConfig,
    seeding: SeedConfig,
    session: Session,
    zero: Places = (),
) -> RunHeader:
    """What a run is created with: the model, its fingerprint, the configuration, the groups."""
    index = experts.index
    return RunHeader(
        str(index.root) if index.revision is None else index.model,
        index.model_type,
        index.revision,
        index.fingerprint(),
        RunConfig(selection.identity(), seeding.identity(), session.device.type),
        tuple(GroupRecord.of(group) for group in experts.groups),
        zero,
    )


def seed_plans(
    groups: Sequence[ExpertGroup], seeding: SeedConfig, resources: Resources
) -> dict[str, Plans]:
    """The plans of every group; InputError that names the stage that needs most of all."""
    limit, base = resources.limit, resources.base
    stages = {
        group.key: seed_stages(group, seeding, resources.machine.processes) for group in groups
    }
    resources.require(stage for own in stages.values() for stage in own.values())
    return {key: planner.plans(own, limit, base) for key, own in stages.items()}


def seed_stages(group: ExpertGroup, seeding: SeedConfig, processes: int = 1) -> dict[str, Stage]:
    """Every seeding stage of `group` by name."""
    return planner.seed_stages(
        group,
        proxies_for(seeding.method, seeding.proxies),
        products=gram_products(seeding, group.sizes.experts, group.bases),
        processes=processes,
    )


def _new_run(path: Path, header: RunHeader, fresh: bool, world: World) -> Run:
    if world.leads and fresh and (path / "ledger.jsonl").exists():
        Run.erase(path)
    return Run.create(path, header, world)


def _discard_unseeded(path: Path, made: bool) -> None:
    """Delete the run at `path` if its first passes are all it has, with its folder if `made`."""
    if not Run.exists(path):
        return
    later = tuple(f":{stage}" for stage in STAGES if stage != "statistics")
    with Run(path, writable=True) as run:
        if any(key.endswith(later) for commit in run.commits for key in commit.states):
            return
    Run.erase(path)
    if made:
        files.remove(path)
