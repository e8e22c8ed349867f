"""`merge`: runs of separate groups of one model, such as other layers, joined into one run."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from globe_stream.checkpoint.index import open_index
from globe_stream.commands.compatibility import matching_run, source_changes
from globe_stream.commands.experts import Places, open_experts
from globe_stream.commands.run_files import write_config
from globe_stream.commands.verify import verify
from globe_stream.config import SeedConfig, SelectionConfig, TrainConfig, differences
from globe_stream.engine.device import Machine
from globe_stream.engine.records import (
    BUDGET,
    MACHINE,
    MEMORY,
    TRAINING,
    Budget,
    PeakMemory,
    TrainingOptions,
)
from globe_stream.engine.status import StatusDocument, run_status
from globe_stream.errors import GlobeError, InputError, option
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.records import (
    GroupRecord,
    RunConfig,
    RunHeader,
    group_state,
    require_source,
    run_header,
    seeded_state,
)
from globe_stream.io import files
from globe_stream.io.records import Json
from globe_stream.io.world import ALONE
from globe_stream.store import arrays
from globe_stream.store.adopting import adopt, recorded_states
from globe_stream.store.run import Run

_PARTS = ("families", "single_layer", "layers")
"""Options of the selection in which the runs may differ: together they choose the groups."""


def merge(out: Path, paths: Sequence[Path]) -> StatusDocument:
    """Join the runs at `paths` into the run directory `out`; returns its status.

    The result is the run that one `seed` and `train` over all of their groups would have made, and
    continues like it. The same call again continues one that was cut off. Raises InputError, before
    anything is written, for runs of other models or options, unfinished ones, a group that two of
    them have, and one that none has.
    """
    _require_apart(paths)
    with ExitStack() as held:
        runs = [held.enter_context(Run(path, writable=True)) for path in paths]
        _require_alike(runs)
        owners = _owners(runs)
        header = _joined_header(runs, owners)
        run = matching_run(out, header, False, ALONE) or Run.create(out, header)
        held.enter_context(run)
        for group in header.groups:
            if group_state(run, group.key) is None:
                adopt(run, owners[group.key], group.key)
        _adopt_records(run, runs)
        problems = verify(out).problems
        if problems:
            raise GlobeError(f"{problems[0]}. Make it anew from undamaged runs")
        return run_status(run)


def _require_apart(paths: Sequence[Path]) -> None:
    """Raise InputError for a run that is given twice."""
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{path}: given twice. Give every run once")


def _require_alike(runs: Sequence[Run]) -> None:
    """Raise InputError for a run that is not of the model and with the options of the first."""
    first, *others = runs
    old = run_header(first)
    for run in others:
        new = run_header(run)
        changed = [
            *differences({"model": _source_name(old)}, {"model": _source_name(new)}),
            *differences(_shared(old.config), _shared(new.config)),
            *source_changes(old.fingerprint, new.fingerprint),
            *differences(_training(first), _training(run)),
        ]
        if changed:
            raise InputError(
                f"{run.path}: not of the same model and options as {first.path}: "
                f"{'; '.join(changed)}. Merge runs that differ in their groups only"
            )


def _source_name(header: RunHeader) -> str:
    """The hub's id, or the folder's own name: another machine may have it elsewhere."""
    return header.model if header.revision is not None else Path(header.model).name


def _shared(config: RunConfig) -> Json:
    kept = {name: value for name, value in config.selection.items() if name not in _PARTS}
    return {**kept, **{f"seed {k}": v for k, v in config.seed.items()}, "device": config.device}


def _training(run: Run) -> Json:
    state = run.state(TRAINING, TrainingOptions)
    return {} if state is None else dict(state.options)


def _owners(runs: Sequence[Run]) -> dict[str, Run]:
    """The run that has each group; InputError for one that two have, or that is not finished."""
    owners: dict[str, Run] = {}
    for run in runs:
        for group in run_header(run).groups:
            key = group.key
            if key in owners:
                raise InputError(
                    f"{key}: both {owners[key].path} and {run.path} have it. {_remedy(run)}"
                )
            if group_state(run, key) is None or f"{key}:partial" in recorded_states(run, key):
                raise InputError(
                    f"{run.path}: {key} is not finished. Give the command that works on it again, "
                    "then merge"
                )
            owners[key] = run
    return owners


def _remedy(run: Run) -> str:
    """What to do about a group that `run` and another one have."""
    if run_header(run).config.seed["bank_scope"] != "global":
        return "Leave one of them out"
    return f"Leave one of them out, or seed each of other layers with {option('bank_scope')} layer"


def _joined_header(runs: Sequence[Run], owners: dict[str, Run]) -> RunHeader:
    """The header of one run with all groups of `runs`, checked against the checkpoint."""
    first = run_header(runs[0])
    require_source(runs[0], first)
    zero: Places = tuple(sorted({place for run in runs for place in run_header(run).zero_experts}))
    selection = SelectionConfig.from_mapping(_joined_selection(runs, owners), "selection")
    seeding = SeedConfig.from_mapping(first.config.seed, "seed")
    experts = open_experts(first.model, selection, seeding, zero)
    changed = source_changes(first.fingerprint, experts.index.fingerprint())
    if changed:
        raise InputError(
            f"{first.model}: changed since {runs[0].path} was seeded: {'; '.join(changed)}. "
            "Restore the checkpoint"
        )
    for group in experts.groups:
        _require_group(group, owners)
    extra = sorted(set(owners) - {group.key for group in experts.groups})
    if extra:
        raise InputError(
            f"{owners[extra[0]].path}: {extra[0]} would not be a group of one run over all layers "
            f"({option('bank_scope')} {seeding.bank_scope}). "
            f"Seed with {option('layers')} that begin where its groups do"
        )
    groups = tuple(GroupRecord.of(group) for group in experts.groups)
    config = RunConfig(selection.identity(), first.config.seed, first.config.device)
    return RunHeader(
        first.model, first.model_type, first.revision, first.fingerprint, config, groups, zero
    )


def _require_group(group: ExpertGroup, owners: dict[str, Run]) -> None:
    """Raise InputError unless one of the runs has `group`, of just these experts."""
    key = group.key
    if key not in owners:
        raise InputError(
            f"{key}: none of the runs has it. Add the run that does, or seed it with "
            f"{option('layers')} {group.experts[0].layer}:{group.experts[-1].layer + 1}"
        )
    run = owners[key]
    (recorded,) = [own for own in run_header(run).groups if own.key == key]
    changed = differences(recorded.to_json(), GroupRecord.of(group).to_json())
    members = arrays.read(run.array(f"{key}/experts")).tolist()
    if changed or members != [list(expert.member) for expert in group.experts]:
        raise InputError(
            f"{run.path}: {key} has other experts than in one run over all layers"
            f"{': ' if changed else ''}{'; '.join(changed)}. Merge runs of whole layers"
        )


def _joined_selection(runs: Sequence[Run], owners: dict[str, Run]) -> Json:
    """The selection of one run over the families and layers of all `runs`."""
    selections = [
        SelectionConfig.from_mapping(run_header(run).config.selection, "selection") for run in runs
    ]
    names = list(dict.fromkeys(name for one in selections for name in one.family_names))
    families = "both" if set(names) == {"up", "gate"} else ",".join(names)
    layers = {layer for key, run in owners.items() for layer in _layers(run, key)}
    first = selections[0]
    model = run_header(runs[0]).model
    index = open_index(model, first.revision, first.include_mtp, first.rule)
    whole = {expert.layer for name in names for expert in index.experts.get(name, ())} <= layers
    return {
        **first.identity(),
        "families": families,
        "single_layer": None,
        "layers": None if whole else f"{min(layers)}:{max(layers) + 1}",
    }


def _layers(run: Run, key: str) -> list[int]:
    """The layers of the experts of group `key`."""
    return [int(layer) for layer in arrays.read(run.array(f"{key}/experts"))[:, 0]]


def _adopt_records(run: Run, runs: Sequence[Run]) -> None:
    """Take over what belongs to the runs as a whole: options, machine, highest peak, metrics."""
    training = runs[0].state(TRAINING, TrainingOptions)
    machine = runs[0].state(MACHINE, Machine)
    peaks = [one.state(MEMORY, PeakMemory) or PeakMemory(0) for one in runs]
    budgets = [one.state(BUDGET, Budget) or Budget(0) for one in runs]
    run.commit(
        {
            **({} if training is None else {TRAINING: training}),
            **({} if machine is None else {MACHINE: machine}),
            MEMORY: max(peaks, key=lambda peak: peak.bytes),
            BUDGET: max(budgets, key=lambda budget: budget.bytes),
        }
    )
    rows = [one.path / "metrics.jsonl" for one in runs]
    told = "".join(path.read_text(encoding="utf-8") for path in rows if path.exists())
    files.write_text(run.path / "metrics.jsonl", told)
    write_config(run, None if training is None else _trained_with(run, training))


def _trained_with(run: Run, training: TrainingOptions) -> TrainConfig:
    """The recorded options with as many epochs as were done."""
    done = max(seeded_state(run, group.key).epoch for group in run_header(run).groups)
    options = {**training.options, "epochs": max(1, done)}
    return TrainConfig.from_mapping(options, f"{run.path}: recorded options")
