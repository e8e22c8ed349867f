"""What a run would cost, from headers alone: `globe-stream plan`.

Source: docs/design.md, sections Problem and Memory.
"""

import shutil
from pathlib import Path
from typing import Any

from globe_stream.commands.session import memory_limit, open_experts
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.engine import device as devices
from globe_stream.factorization.groups import ExpertGroup, GroupSizes
from globe_stream.factorization.records import GroupRecord
from globe_stream.factorization.svd_baseline import sampled_experts, seed_passes
from globe_stream.memory import allocator, planner
from globe_stream.memory.cost_model import StagePlan, safe_budget
from globe_stream.memory.meter import Meter
from globe_stream.seeding.methods import proxies_for


def estimate(
    model: str,
    selection: SelectionConfig,
    seeding: SeedConfig,
    training: TrainConfig,
    runtime: RuntimeConfig,
) -> dict[str, Any]:
    """The document of `plan --json`; InputError for whatever `seed` or `train` would refuse."""
    allocator.return_freed_memory()
    source = open_experts(model, selection, seeding)
    device, reason = devices.choose_device(runtime.device)
    devices.prepare(device, reason, None)
    devices.warm_up(device)
    limit, base = memory_limit(runtime, None), Meter(device).now()
    kind = proxies_for(seeding.method, seeding.proxies)
    needed = [
        stage
        for group in source.groups
        for stage in (
            *planner.seed_stages(group, kind).values(),
            planner.train_stage(group, training),
        )
    ]
    planner.require(needed, limit, base)
    stages: list[dict[str, Any]] = []
    for group in source.groups:
        plans = planner.seed_plans(group, kind, limit, base)
        stages += [
            _stage(f"{group.key}/seed/{plan.stage.split()[0].split('/')[-1]}", plan, base)
            for plan in plans.values()
        ]
        stages.append(
            _stage(f"{group.key}/train", planner.train_plan(group, training, limit, base), base)
        )
    seed_bytes = sum(seed_bytes_read(group, seeding) for group in source.groups)
    epoch_bytes = sum(group.sizes.stored_bytes for group in source.groups)
    place = Path.cwd()
    return {
        "format": 1,
        "model": model,
        "memory_budget_bytes": limit,
        "base_bytes": base,
        "least_memory_bytes": safe_budget(max(stage.least(base) for stage in needed)),
        "peak_memory_bytes": max(stage["memory_bytes"] for stage in stages),
        "seed_bytes_read": seed_bytes,
        "epoch_bytes_read": epoch_bytes,
        "bytes_read": seed_bytes + training.epochs * epoch_bytes,
        "passes": min(map(seed_passes, source.groups)) + training.epochs,
        "epoch_flops": sum(epoch_operations(group.sizes) for group in source.groups),
        "disk_bytes": disk_bytes(list(source.groups)),
        "disk_free_bytes": shutil.disk_usage(place).free,
        "units": {group.key: _group(group) for group in source.groups},
        "stages": stages,
    }


def seed_bytes_read(group: ExpertGroup, config: SeedConfig) -> int:
    """Bytes that seeding reads: statistics, proxies (selected rows only), measure, baseline."""
    sizes = group.sizes
    share = sizes.rank / sizes.p if proxies_for(config.method, config.proxies) == "rows" else 1.0
    sample = len(sampled_experts(group)) / sizes.experts
    return round(sizes.stored_bytes * (2 + share + sample))


def epoch_operations(sizes: GroupSizes) -> float:
    """Floating-point operations of one surrogate epoch.

    For each expert: compose and both bank products 6 m r d; H H^T 2 r^2 d; W H^T and A^T W 4 p r d;
    A^T A and the solve 4 r^2 p; A^T A H 2 r^2 d; Cholesky r^3 / 3.
    """
    m, r, p, d = sizes.bases, sizes.rank, sizes.p, sizes.d
    each = 6 * m * r * d + 4 * r * r * d + 4 * p * r * d + 4 * r * r * p + r**3 / 3
    return float(sizes.experts * each)


def disk_bytes(groups: list[ExpertGroup]) -> int:
    """Peak disk of a run directory.

    A trained unit keeps the measured, the next and the seeded bank and the momentum, and while
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


def _group(group: ExpertGroup) -> dict[str, Any]:
    sizes = group.sizes
    return {
        **GroupRecord.of(group).to_json(),
        "svd_rank": sizes.svd_rank,
        "parameter_ratio": sizes.parameter_ratio(sizes.experts * sizes.bases),
    }


def _stage(name: str, plan: StagePlan, base: int) -> dict[str, Any]:
    return {
        "stage": name,
        "memory_bytes": base + plan.estimate_bytes,
        "batch": plan.batch_plan.batch,
        "spill": plan.batch_plan.spill,
    }
