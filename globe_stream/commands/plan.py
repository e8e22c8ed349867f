"""`plan`: what a run would cost, from headers alone."""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from globe_stream.commands.estimate import GroupEstimate, RunEstimate, StageEstimate
from globe_stream.commands.experts import open_experts
from globe_stream.commands.operations import epoch_work, seed_work, train_work
from globe_stream.commands.seed import seed_plans, seed_stages
from globe_stream.commands.session import Plans, Resources, Session
from globe_stream.commands.train import train_plans
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.engine.capabilities import device_fault
from globe_stream.engine.rates import Rates, measured_rates
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.sizes import GroupSizes
from globe_stream.factorization.svd_baseline import seed_passes
from globe_stream.memory import planner
from globe_stream.memory.cost_model import safe_budget, train_traffic
from globe_stream.memory.device_memory import given_limit
from globe_stream.memory.operations import Work
from globe_stream.memory.planner import Stage


def plan(
    model: str,
    selection: SelectionConfig,
    seeding: SeedConfig,
    training: TrainConfig,
    runtime: RuntimeConfig,
    processes: int = 1,
) -> RunEstimate:
    """Sizes, passes, priced memory and disk; InputError for what `seed` or `train` would refuse.

    Memory is that of each of `processes` under torchrun, and so is what it writes to and reads
    from spilled banks; all else is of the whole.
    """
    groups = open_experts(model, selection, seeding).groups
    session, resources = _priced_for(runtime, processes)
    needed = _needed(groups, seeding, training, processes)
    resources.require(needed)
    least = safe_budget(max(stage.least(resources.base) for stage in needed))
    pricing = _Pricing(model, groups, seeding, training, runtime, resources, least)
    return pricing.estimate(measured_rates(session.device, groups[0].experts))


@dataclass(frozen=True)
class _Pricing:
    """A run that fits the memory of `resources`, of which it needs `least` bytes."""

    model: str
    groups: Sequence[ExpertGroup]
    seeding: SeedConfig
    training: TrainConfig
    runtime: RuntimeConfig
    resources: Resources
    least: int

    def estimate(self, rates: Rates) -> RunEstimate:
        """What it takes on a machine with these rates."""
        count = self.resources.machine.processes
        stages, spilled = tuple(self._stages()), self._spilled()
        took = _Took.of(self.groups, self.seeding, self.training, spilled * count)
        return RunEstimate(
            format=1,
            model=self.model,
            processes=count,
            device=self.runtime.device,
            memory_budget_bytes=self.resources.limit,
            base_bytes=self.resources.base,
            least_memory_bytes=self.least,
            peak_memory_bytes=max(stage.memory_bytes for stage in stages),
            seed_bytes_read=round(took.seed.read_bytes),
            epoch_bytes_read=round(took.regular.read_bytes),
            bytes_read=round(took.whole.read_bytes),
            passes=min(map(seed_passes, self.groups)) + self.training.epochs,
            spilled_epoch_bytes=spilled,
            seed_flops=took.seed.operations,
            warmup_epoch_flops=took.warmup.operations,
            epoch_flops=took.regular.operations,
            flops=took.whole.operations,
            rates=rates,
            seed_seconds=rates.seconds(took.seed) / count,
            warmup_epoch_seconds=rates.seconds(took.warmup) / count,
            epoch_seconds=rates.seconds(took.regular) / count,
            seconds=rates.seconds(took.whole) / count,
            disk_bytes=disk_bytes(self.groups),
            disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
            units={group.key: GroupEstimate.of(group) for group in self.groups},
            stages=stages,
        )

    @cached_property
    def _trained(self) -> dict[str, Plans]:
        """The plans of training by group."""
        return train_plans(self.groups, self.training, self.resources)

    def _stages(self) -> Iterator[StageEstimate]:
        """Every stage of every group, in the order in which they are carried out."""
        seeded, base = seed_plans(self.groups, self.seeding, self.resources), self.resources.base
        for group in self.groups:
            key = group.key
            for plan in seeded[key].values():
                name = plan.stage.split()[0].split("/")[-1]
                yield StageEstimate.of(f"{key}/seed/{name}", plan, base)
            yield StageEstimate.of(f"{key}/train", self._trained[key]["train"], base)

    def _spilled(self) -> int:
        """Bytes that one process moves in an epoch for banks that are on disk."""
        count = self.resources.machine.processes
        return sum(
            train_traffic(_share(group.sizes, count), self._trained[group.key]["train"].batch_plan)
            for group in self.groups
        )


def _share(sizes: GroupSizes, processes: int) -> GroupSizes:
    """What one of `processes` reads of a group's experts; of the bank, all."""
    return replace(sizes, experts=math.ceil(sizes.experts / processes))


def _priced_for(runtime: RuntimeConfig, processes: int) -> tuple[Session, Resources]:
    """A session of this machine, and what one of `processes` has on the machine of `runtime`.

    The CPU stands in for a device that only another machine has: an array takes its bytes once,
    on either side.
    """
    elsewhere = runtime.device not in ("cpu", "auto") and device_fault(runtime.device) is not None
    own = None
    if elsewhere:
        own = given_limit(runtime.device, runtime.device_memory)
        runtime = runtime.model_copy(update={"device": "cpu", "device_memory": None})
    session = Session.open(runtime)
    resources = session.resources()
    machine = replace(resources.machine, processes=processes)
    return session, replace(resources.on_device(own), machine=machine)


@dataclass(frozen=True)
class _Took:
    """What a whole run takes, of all groups, and its parts: an epoch of each kind, and the seed."""

    seed: Work
    warmup: Work
    regular: Work
    whole: Work

    @classmethod
    def of(
        cls,
        groups: Sequence[ExpertGroup],
        seeding: SeedConfig,
        training: TrainConfig,
        spilled: float,
    ) -> "_Took":
        """`spilled` are the bytes that an epoch of all groups moves for banks that are on disk."""
        banks = Work(disk_bytes=spilled)
        seeds = [stage for group in groups for stage in seed_work(group, seeding).values()]
        epochs = [one for group in groups for one in train_work(group, training)]
        epochs += [banks] * training.epochs
        warm, regular = (
            [*(epoch_work(group, training, epoch) for group in groups), banks]
            for epoch in (0, training.warmup_epochs)
        )
        return cls(*(sum(parts, Work()) for parts in (seeds, warm, regular, seeds + epochs)))


def disk_bytes(groups: Sequence[ExpertGroup]) -> int:
    """Peak disk of a run directory.

    A trained group keeps the measured, the next and the seeded bank and the momentum, and while
    committing the new ones; seeding spills the proxies and a bank.
    """
    kept = sum(4 * group.sizes.bank_bytes for group in groups)
    return kept + max(
        max(
            3 * group.sizes.bank_bytes,
            group.sizes.experts * group.sizes.rank * group.sizes.d * group.proxy_dtype.itemsize,
        )
        for group in groups
    )


def _needed(
    groups: Sequence[ExpertGroup], seeding: SeedConfig, training: TrainConfig, processes: int
) -> list[Stage]:
    """Every stage of seeding and training, of all groups."""
    return [
        stage
        for group in groups
        for stage in (
            *seed_stages(group, seeding, processes).values(),
            planner.train_stage(group, training, processes),
        )
    ]
