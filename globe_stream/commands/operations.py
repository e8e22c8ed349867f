"""The work of every stage of a run with its configuration; see `memory.operations`."""

from collections.abc import Sequence

from globe_stream.config import SeedConfig, TrainConfig
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.svd_baseline import sampled_experts
from globe_stream.memory import operations
from globe_stream.memory.operations import EpochKind, Work
from globe_stream.seeding.methods import proxies_for
from globe_stream.training.schedule import Schedule, ScheduleState


def seed_work(group: ExpertGroup, config: SeedConfig) -> dict[str, Work]:
    """Every stage of seeding `group` by name, in order."""
    sizes, itemsize = group.sizes, group.proxy_dtype.itemsize
    kind = proxies_for(config.method, config.proxies)
    rounds = config.dictionary_rounds if config.method == "nn_dictionary" else 0
    return {
        "statistics": operations.statistics(sizes, kind),
        "proxies": operations.proxies(sizes, kind, itemsize),
        "gram": operations.gram(sizes, itemsize),
        "atoms": operations.atoms(sizes, rounds, itemsize),
        "measure": operations.measure(sizes),
        "baseline": operations.baseline(sizes, len(sampled_experts(group))),
    }


def epoch_work(group: ExpertGroup, config: TrainConfig, epoch: int) -> Work:
    """The epoch number `epoch`, counted from zero."""
    schedule, now = Schedule(config, group.bases, 1.0), ScheduleState(epoch=epoch)
    linear = schedule.in_warmup(now) or config.activation == "none"
    kind = EpochKind(
        beta=schedule.beta(now),
        pinv=config.targets == "pinv",
        projected=linear and config.warmup_targets == "current",
        coding_steps=config.coding_steps,
        sparse=schedule.support_target() is not None or config.support_cap is not None,
    )
    return operations.epoch(group.sizes, kind)


def train_work(group: ExpertGroup, config: TrainConfig) -> list[Work]:
    """Every epoch, in order."""
    return [epoch_work(group, config, epoch) for epoch in range(config.epochs)]


def expected_seeding(groups: Sequence[ExpertGroup], config: SeedConfig) -> dict[str, Work]:
    """The stages of seeding `groups` by their titles, in the order in which they are carried out.

    The first pass is made over all groups before anything else.
    """
    works = {group.key: seed_work(group, config) for group in groups}
    first = [(f"{key} statistics", own.pop("statistics")) for key, own in works.items()]
    later = [
        (f"{key} {'dictionary' if stage == 'atoms' else stage}", one)
        for key, own in works.items()
        for stage, one in own.items()
    ]
    return dict([*first, *later])


def expected_training(groups: Sequence[ExpertGroup], config: TrainConfig) -> dict[str, Work]:
    """As `expected_seeding`, the epochs of `groups`."""
    return {
        f"{group.key} epoch {number}": one
        for group in groups
        for number, one in enumerate(train_work(group, config), start=1)
    }
