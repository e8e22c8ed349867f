"""`train`: alternating minimisation of every group of a seeded run."""

from collections.abc import Sequence
from pathlib import Path

from globe_stream.commands.compatibility import foreign_options, mismatch
from globe_stream.commands.completion import is_complete, why_complete
from globe_stream.commands.experts import GroupedExperts, recorded_experts
from globe_stream.commands.operations import expected_training
from globe_stream.commands.run_files import write_config
from globe_stream.commands.session import Plans, Resources, Session, recorded_plans
from globe_stream.commands.wording import worded
from globe_stream.config import RuntimeConfig, TrainConfig, differences
from globe_stream.engine.context import Context
from globe_stream.engine.distributed import join
from globe_stream.engine.records import TRAINING, TrainingOptions
from globe_stream.engine.status import StatusDocument, run_status
from globe_stream.errors import InputError, option
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.records import (
    PROCRUSTES_MEAN,
    GroupState,
    group_state,
    run_header,
    seeded_state,
)
from globe_stream.io.records import JsonObject
from globe_stream.memory import planner
from globe_stream.store.run import Run
from globe_stream.training.trainer import Trainer
from globe_stream.training.warnings import training_warnings


def train(
    path: Path,
    training: TrainConfig,
    runtime: RuntimeConfig,
    *,
    fresh: bool = False,
    inherit: bool = True,
    silent: bool = False,
) -> StatusDocument:
    """Alternating minimisation of every group of the run at `path`; returns the status.

    With `inherit`, options that `training` was not given are those that the run was trained with
    before, and otherwise the defaults. The same call again continues; more epochs than were done
    go on from there. Raises InputError when the source or a given option changed, unless `fresh`,
    which trains again from the seeds.
    """
    world = join()
    with Run(path, writable=True, world=world) as run:
        if inherit and not fresh:
            training = _with_recorded(run, training)
        experts = recorded_experts(run)
        _require_seeded(run, experts)
        session = Session.open(runtime, silent=silent, world=world)
        resources = session.resources(run)
        plans = train_plans(experts.groups, training, resources)
        session.require_free(resources, (own["train"] for own in plans.values()))
        _require_initial(run, experts.groups, training)
        _adopt_config(run, training, fresh)
        with session.recording(run, resources, {"train": training}) as context:
            _announce(context, experts.groups, training)
            experts.fetch(anew=runtime.force_download)
            context.expect(expected_training(experts.groups, training), experts.groups[0].experts)
            for group in experts.groups:
                key = f"{group.key}:plans:train"
                chosen = recorded_plans(run, key, plans[group.key], resources.limit)
                Trainer(context, group, training, chosen["train"]).run()
            for group in experts.groups:
                for line in seeded_state(run, group.key).warnings:
                    context.progress.say(f"{group.key}: {line}")
        return run_status(run)


def train_plans(
    groups: Sequence[ExpertGroup], training: TrainConfig, resources: Resources
) -> dict[str, Plans]:
    """The plans of every group; InputError that names the group that needs most of all."""
    limit, base, count = resources.limit, resources.base, resources.machine.processes
    resources.require(planner.train_stage(group, training, count) for group in groups)
    return {
        group.key: {"train": planner.train_plan(group, training, limit, base, count)}
        for group in groups
    }


def _require_seeded(run: Run, experts: GroupedExperts) -> None:
    waiting = [group.key for group in experts.groups if group_state(run, group.key) is None]
    if waiting:
        raise InputError(
            f"{run.path}: seeding is not finished ({', '.join(waiting[:3])}). "
            "Give the seed command again first"
        )


def _require_initial(run: Run, groups: Sequence[ExpertGroup], training: TrainConfig) -> None:
    """InputError where targets of the warm start are asked for and seeding left none."""
    wanted = training.warmup_targets == "initial" and "warmup_targets" not in training.unused()
    if wanted and not all(run.has(f"{group.key}/{PROCRUSTES_MEAN}") for group in groups):
        raise InputError(
            f"{run.path}: {option('warmup_targets')} initial needs the mean of a warm start from "
            f"procrustes proxies. Leave it out, or seed with {option('proxies')} procrustes"
        )


def _with_recorded(run: Run, training: TrainConfig) -> TrainConfig:
    """`training` with the options of `run` in place of those that were not given."""
    state = run.state(TRAINING, TrainingOptions)
    if state is None or set(state.options) != set(training.identity()):
        return training
    recorded = {
        name: value
        for name, value in state.options.items()
        if value != TrainConfig.specs()[name].default
    }
    given = training.model_dump(exclude_unset=True)
    return TrainConfig.from_mapping({**recorded, **given}, f"{run.path}: recorded options")


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
        _require_same(run, recorded, training)
    if run.world.leads:
        write_config(run, training)


def _require_same(run: Run, recorded: JsonObject, training: TrainConfig) -> None:
    changed = differences(recorded, training.identity())
    if not changed:
        return
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


def _announce(context: Context, groups: Sequence[ExpertGroup], training: TrainConfig) -> None:
    """Print that nothing is left to do, or which settings have an effect that may surprise."""
    if is_complete(context.run, training):
        context.progress.say(worded(why_complete(context.run, training)))
        return
    of_groups = [line for group in groups for line in training_warnings(training, group.bases)]
    for line in (*training.ignored(), *dict.fromkeys(of_groups)):
        context.progress.say(worded(line))
