"""The experts that a command works on, grouped by the bank that they share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.index import ExpertIndex, open_index, require_revisions
from globe_stream.checkpoint.selection import Selection, parse_exclude, parse_layers
from globe_stream.commands.compatibility import source_changes
from globe_stream.config import SeedConfig, SelectionConfig
from globe_stream.errors import InputError, option
from globe_stream.factorization.groups import ExpertGroup, make_groups
from globe_stream.factorization.records import require_source, run_header
from globe_stream.formatting import count_of
from globe_stream.seeding.statistics import ZeroExperts
from globe_stream.store.run import Run

Places = tuple[tuple[int, int], ...]
"""Layer and number of some routed experts."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class GroupedExperts:
    """The selected experts of a checkpoint and the groups that share a bank.

    `notes` are lines for the user on what was asked for and is not among them; options are marked.
    """

    index: ExpertIndex
    groups: tuple[ExpertGroup, ...]
    notes: tuple[str, ...] = ()

    @property
    def experts(self) -> list[ExpertMatrix]:
        """The experts of all groups."""
        return [expert for group in self.groups for expert in group.experts]

    def fetch(self, *, anew: bool = False) -> None:
        """Download the shards of a hub model that hold these experts; `anew`: also those here."""
        self.index.fetch(self.experts, anew=anew)


def open_experts(
    model: str, selection: SelectionConfig, seeding: SeedConfig, zero: Places = ()
) -> GroupedExperts:
    """Index `model`, select experts and group them; reads headers only.

    `zero` are experts known to be zero everywhere, which are left out.
    """
    require_revisions(model, selection.revision)
    index = open_index(model, selection.revision, selection.include_mtp, selection.rule)
    return group_experts(index, selection, seeding, zero)


def group_experts(
    index: ExpertIndex, selection: SelectionConfig, seeding: SeedConfig, zero: Places = ()
) -> GroupedExperts:
    """Select experts of `index` and group them; InputError where sizes do not fit."""
    wanted = Selection(
        families=selection.family_names,
        single_layer=selection.single_layer,
        layers=None if selection.layers is None else parse_layers(selection.layers),
        max_experts=selection.max_experts,
        sample_method=selection.sample_method,
        include_shared=selection.include_shared,
        exclude=() if selection.exclude is None else parse_exclude(selection.exclude),
        zero=zero,
    )
    chosen = index.select(wanted)
    groups = make_groups(chosen.experts, tuple(chosen.experts), seeding)
    notes = (*_missing(chosen, selection), *_left_out(index, chosen, wanted), *_zero(zero))
    return GroupedExperts(chosen, tuple(groups), notes)


def _missing(chosen: ExpertIndex, selection: SelectionConfig) -> tuple[str, ...]:
    """One line for each family that was asked for and that the model's experts do not have."""
    return tuple(
        f"{chosen.model}: its experts have no {family}; {option('families')} "
        f"{selection.families} means {', '.join(chosen.experts)}"
        for family in selection.family_names
        if family not in chosen.experts
    )


def _zero(zero: Places) -> tuple[str, ...]:
    """A line on the experts that are left out because they are zero everywhere."""
    if not zero:
        return ()
    chosen = ",".join(f"{layer}:{number}" for layer, number in zero)
    return (
        f"{count_of(len(zero), 'expert')} with a matrix that is zero everywhere, kept as stored, "
        f"as with {option('exclude')} {chosen}",
    )


def without_zero_experts(work: Callable[[Places], Result], known: Places = ()) -> Result:
    """`work(zero)`, where `zero` are the experts that are zero everywhere: those `known`, and more.

    `work` finds them in its first pass and raises `ZeroExperts`; it is then done again without.
    """
    while True:
        try:
            return work(known)
        except ZeroExperts as found:
            places = {(expert.layer, expert.expert) for expert in found.experts}
            known = tuple(sorted({*known, *places}))


def _left_out(index: ExpertIndex, chosen: ExpertIndex, wanted: Selection) -> tuple[str, ...]:
    """One line for each family whose shared experts were asked for and are not all among N."""
    if not wanted.include_shared or wanted.max_experts is None:
        return ()
    every = index.select(replace(wanted, max_experts=None))
    lines = []
    for family in chosen.experts:
        there, kept = _shared_blocks(every, family), _shared_blocks(chosen, family)
        if kept < there:
            lines.append(
                f"{family}: {option('max_experts')} {wanted.max_experts} leaves out "
                f"{there - kept} of {count_of(there, 'block')} of shared experts that "
                f"{option('include_shared')} asks for"
            )
    return tuple(lines)


def _shared_blocks(index: ExpertIndex, family: str) -> int:
    return sum(expert.shared for expert in index.experts[family])


def recorded_experts(run: Run) -> GroupedExperts:
    """The experts that `run` was seeded from; InputError when they changed since."""
    header = run_header(run)
    try:
        selection = SelectionConfig.from_mapping(header.config.selection, "selection")
        seeding = SeedConfig.from_mapping(header.config.seed, "seed")
    except InputError as error:
        raise InputError(
            f"{run.path}: begun by another version of globe-stream ({error.message}). "
            f"Use that version, or seed again with {option('fresh')} or into a new {option('run')}"
        ) from error
    require_source(run, header)
    experts = open_experts(header.model, selection, seeding, header.zero_experts)
    changed = source_changes(header.fingerprint, experts.index.fingerprint())
    if changed:
        raise InputError(
            f"{header.model}: changed since {run.path} was seeded: {'; '.join(changed)}. "
            f"Restore the checkpoint, or seed again with {option('fresh')}"
        )
    return experts
