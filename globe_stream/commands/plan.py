"""`plan`: what a run would cost, from headers alone."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from globe_stream.commands.experts import open_experts
from globe_stream.commands.operations import epoch_work, seed_work, train_work
from globe_stream.commands.seed import seed_plans, seed_stages
from globe_stream.commands.session import Document, Plans, Resources, Session
from globe_stream.commands.train import train_plans
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.engine.capabilities import device_fault
from globe_stream.engine.rates import measured_rates
from globe_stream.factorization.groups import ExpertGroup, GroupSizes
from globe_stream.factorization.records import GroupRecord
from globe_stream.factorization.svd_baseline import seed_passes
from globe_stream.memory import planner
from globe_stream.memory.cost_model import safe_budget, train_traffic
from globe_stream.memory.device_memory import given_limit, within
from globe_stream.memory.operations import Work
from globe_stream.memory.planner import Stage


def plan(
    model: str,
    selection: SelectionConfig,
    seeding: SeedConfig,
    training: TrainConfig,
    runtime: RuntimeConfig,
    processes: int = 1,
) -> Document:
    """Sizes, passes, priced memory and disk; InputError for what `seed` or `train` would refuse.

    Memory is that of each of `processes` under torchrun, and so is what it writes to and reads
    from spilled banks; all else is of the whole.
    """
    experts = open_experts(model, selection, seeding)
    session, resources = _priced_for(runtime, processes)
    needed = _needed(experts.groups, seeding, training, processes)
    planner.require(needed, resources.limit, resources.base)
    seeded = seed_plans(experts.groups, seeding, resources)
    trained = train_plans(experts.groups, training, resources)
    stages = [
        stage
        for group in experts.groups
        for stage in _stages(group.key, seeded[group.key], trained[group.key], resources.base)
    ]
    spilled = sum(
        train_traffic(_share(group.sizes, processes), trained[group.key]["train"].batch_plan)
        for group in experts.groups
    )
    took = _Took.of(experts.groups, seeding, training, spilled * processes)
    rates = measured_rates(session.device, experts.groups[0].experts)
    return {
        "format": 1,
        "model": model,
        "processes": processes,
        "device": runtime.device,
        "memory_budget_bytes": resources.limit,
        "base_bytes": resources.base,
        "least_memory_bytes": safe_budget(max(stage.least(resources.base) for stage in needed)),
        "peak_memory_bytes": max(stage["memory_bytes"] for stage in stages),
        "seed_bytes_read": round(took.seed.read_bytes),
        "epoch_bytes_read": round(took.regular.read_bytes),
        "bytes_read": round(took.whole.read_bytes),
        "passes": min(map(seed_passes, experts.groups)) + training.epochs,
        "spilled_epoch_bytes": spilled,
        "seed_flops": took.seed.operations,
        "warmup_epoch_flops": took.warmup.operations,
        "epoch_flops": took.regular.operations,
        "flops": took.whole.operations,
        "rates": rates.to_json(),
        "seed_seconds": rates.seconds(took.seed) / processes,
        "warmup_epoch_seconds": rates.seconds(took.warmup) / processes,
        "epoch_seconds": rates.seconds(took.regular) / processes,
        "seconds": rates.seconds(took.whole) / processes,
        "disk_bytes": disk_bytes(experts.groups),
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "units": {group.key: _group(group) for group in experts.groups},
        "stages": stages,
    }


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
    return session, replace(
        resources,
        limit=within(resources.limit, resources.base, own),
        machine=replace(resources.machine, processes=processes),
    )


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


def _group(group: ExpertGroup) -> Document:
    sizes = group.sizes
    return {
        **GroupRecord.of(group).to_json(),
        "svd_rank": sizes.svd_rank,
        "parameter_ratio": sizes.parameter_ratio(sizes.experts * sizes.bases),
    }


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


def _stages(key: str, seeded: Plans, trained: Plans, base: int) -> list[Document]:
    """Every stage of one group, in the order in which they are carried out."""
    named = [
        (f"{key}/seed/{plan.stage.split()[0].split('/')[-1]}", plan) for plan in seeded.values()
    ]
    named.append((f"{key}/train", trained["train"]))
    return [
        {
            "stage": name,
            "memory_bytes": base + plan.estimate_bytes,
            "batch": plan.batch_plan.batch,
            "spill": plan.batch_plan.spill,
        }
        for name, plan in named
    ]
